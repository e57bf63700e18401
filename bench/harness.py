"""What every benchmark here shares: timing peers in turns, the machine's ceilings, where it ran."""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

import pyenc
from pyenc.ops import extension

ROOT = Path(__file__).resolve().parents[1]
RESULTS = Path(__file__).resolve().parent / "results"


def in_turns(
    runs: dict[str, Callable[[], Any]],
    *,
    repeats: int,
    budget: float = 7.0,
    least: int = 3,
    limit: float = 25.0,
) -> dict[str, list[float]]:
    """Seconds of each run, all runs taking turns so that a slow minute hits them alike.

    The caller warms up. Each round starts with another run. One leaves when it has `repeats`
    times, or at least `least` of them and `budget` seconds, or `limit` seconds altogether.
    """
    seconds: dict[str, list[float]] = {name: [] for name in runs}

    def done(name: str) -> bool:
        times = seconds[name]
        spent = sum(times)
        return len(times) >= repeats or spent >= (budget if len(times) >= least else limit)

    names = list(runs)
    while waiting := [name for name in names if not done(name)]:
        for name in waiting:
            start = time.perf_counter()
            runs[name]()
            seconds[name].append(time.perf_counter() - start)
        names = names[1:] + names[:1]
    return seconds


def summary(seconds: Sequence[float]) -> dict[str, Any]:
    """Median and spread: (slowest - fastest) / median, None of a single run."""
    median = statistics.median(seconds)
    spread = (max(seconds) - min(seconds)) / median if len(seconds) > 1 else None
    return {"seconds": list(seconds), "median": median, "spread": spread}


def ceilings() -> dict[str, float]:
    """The best this machine gives torch: fp32 GEMM GFLOP/s (2048^3) and copy GB/s (read + write).

    Memory is touched beforehand, so page faults are not in it.
    """
    n = 2048
    a, b, product = (torch.randn(n, n) for _ in range(3))
    source, target = torch.zeros(2, 64 * 2**20 // 4 * 2).unbind()
    best = {"gemm_gflops": 0.0, "copy_gbs": 0.0}
    for _ in range(6):
        start = time.perf_counter()
        torch.mm(a, b, out=product)
        rate = 2 * n**3 / (time.perf_counter() - start) / 1e9
        best["gemm_gflops"] = max(best["gemm_gflops"], rate)
        start = time.perf_counter()
        target.copy_(source)
        rate = 2 * source.nbytes / (time.perf_counter() - start) / 1e9
        best["copy_gbs"] = max(best["copy_gbs"], rate)
    return best


def environment() -> dict[str, Any]:
    """Where and with what this runs; no names of machines, users or folders."""
    return {
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "command": command_line(),
        "commit": commit(),
        "cpu": cpu_model(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "instruction_set": torch.backends.cpu.get_cpu_capability(),
        "extension": extension.isa(),
        "load_average": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "system": f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
        "versions": {
            "pyenc": pyenc.__version__,
            "torch": torch.__version__,
            **{name: version(name) for name in ("transformers", "sentence-transformers")},
        },
    }


def command_line() -> str:
    """As typed, with folders left out."""
    return " ".join(["python", *(Path(part).name or part for part in sys.argv)])


def commit() -> str | None:
    """The commit of this checkout, with `+` where its sources or benchmarks differ from it."""
    try:
        head = _output("git", "-C", str(ROOT), "rev-parse", "--short=12", "HEAD")
        sources = ("pyenc", "kernels", "csrc", "bench", ":(exclude)bench/results")
        changed = _output("git", "-C", str(ROOT), "status", "--porcelain", "--", *sources)
    except (OSError, subprocess.CalledProcessError):
        return None
    return head + ("+" if changed else "")


def cpu_model() -> str:
    """The processor's name for itself."""
    try:
        if sys.platform == "darwin":
            return _output("sysctl", "-n", "machdep.cpu.brand_string")
        found = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())
    except (OSError, subprocess.CalledProcessError):
        found = None
    return found[1].strip() if found else platform.processor() or platform.machine()


def version(package: str) -> str | None:
    """The installed version, or None where it is absent."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def result_file(benchmark: str, out: str | None) -> Path:
    """`out`, else results/<benchmark>-<cpu>-<cores>c-<date>.json."""
    if out:
        return Path(out)
    cpu = re.sub(r"[^a-z0-9]+", "-", cpu_model().lower()).strip("-")
    date = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d")
    return RESULTS / f"{benchmark}-{cpu}-{os.cpu_count()}c-{date}.json"


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


def _output(*command: str) -> str:
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return done.stdout.strip()
