"""Where and with what a benchmark runs; no names of machines, users or folders."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

import pyenc
from pyenc.ops import extension

ROOT = Path(__file__).resolve().parents[2]

PACKAGES = (
    "transformers", "sentence-transformers", "onnxruntime", "openvino", "nncf", "llama-cpp-python",
)  # fmt: skip
"""Whose versions are recorded beside torch's, where a caller names no others."""


def environment(
    packages: Sequence[str] = PACKAGES, device: torch.device | None = None
) -> dict[str, Any]:
    """All of it, with the versions of these packages and of the GPU where `device` is one."""
    found = {
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
            **{name: version(name) for name in packages},
        },
    }
    if device is not None and device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        found["gpu"] = {
            "name": properties.name,
            "memory_gb": round(properties.total_memory / 1e9, 1),
            "multiprocessors": properties.multi_processor_count,
            "capability": f"{properties.major}.{properties.minor}",
            "cuda": torch.version.cuda or torch.version.hip,
            "cudnn": torch.backends.cudnn.version(),
            "sdpa_order": sdpa_order(),
        }
    return found


def sdpa_order() -> list[str] | None:
    """What scaled_dot_product_attention tries, first to last, where torch says so: a peer's figures
    are those of the first that serves."""
    try:
        from torch.nn.attention import SDPBackend

        names = {int(value): name for name, value in SDPBackend.__members__.items()}
        return [names[number].lower() for number in torch._C._get_sdp_priority_order()]
    except (AttributeError, KeyError):
        return None


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


def cpu_flags() -> frozenset[str]:
    """What the processor says that it has, as Linux names it; empty elsewhere."""
    try:
        found = re.search(r"^flags\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        return frozenset()
    return frozenset(found[1].split()) if found else frozenset()


def gpu_model(device: torch.device | None) -> str:
    """The card's name for itself."""
    return torch.cuda.get_device_name(device)


def version(package: str) -> str | None:
    """The installed version, or None where it is absent."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _output(*command: str) -> str:
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return done.stdout.strip()
