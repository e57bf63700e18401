"""Writing down what was measured: the file of a run, named by what, where and when."""

from __future__ import annotations

import datetime
import json
import os
import re
from pathlib import Path
from typing import Any

import torch

from .machine import ROOT, cpu_model, gpu_model

RESULTS = ROOT / "bench" / "results"


def result_file(benchmark: str, out: str | None, device: torch.device | None = None) -> Path:
    """`out`, else results/<benchmark>-<machine>-<date>.json: CPU and cores, or the GPU's name."""
    if out:
        return Path(out)
    gpu = device is not None and device.type == "cuda"
    name = gpu_model(device) if gpu else f"{cpu_model()} {os.cpu_count()}c"
    name = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    date = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d")
    return RESULTS / f"{benchmark}-{name}-{date}.json"


def write_result(path: Path, result: dict[str, Any]) -> None:
    """As JSON, numbers to six digits."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(_rounded(result), indent=1) + "\n")


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_rounded(item) for item in value]
    return value
