"""Peak memory of one call, on a CPU measured in a process of its own.

In one process allocators mix: what one program freed serves the next. So each measurement is a
child process: it loads, warms up on a small input, notes its resident memory, runs once, and
reports how far the resident memory rose at its highest.
"""

from __future__ import annotations

import ctypes
import gc
import json
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from .machine import ROOT

STATUS = Path("/proc/self/status")
MARK = "measured: "


def growth_mb(run: Callable[[], Any]) -> float | None:
    """How far resident memory rises above where it stood before `run`, at the highest, in MB.

    Exact on Linux, whose kernel keeps the peak and can be told to start again; elsewhere sampled
    every millisecond through psutil; None without psutil.
    """
    gc.collect()
    _give_back()
    if _reset_peak():
        before = _status_mb("VmRSS")
        keep = run()
        peak = _status_mb("VmHWM")
        del keep
        return max(0.0, peak - before)
    try:
        import psutil
    except ImportError:
        return None
    return _sampled(run, psutil.Process())


def card_growth_mb(run: Callable[[], Any], device: torch.device) -> float | None:
    """The same of a GPU's memory, in this process: its allocator tells what is held from what is
    kept for the next. None where the device is no GPU.
    """
    if device.type != "cuda":
        return None
    gc.collect()
    torch.cuda.synchronize(device)
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    keep = run()
    torch.cuda.synchronize(device)
    peak = torch.cuda.max_memory_allocated(device)
    del keep
    return (peak - before) / 1e6


def highest_mb() -> float | None:
    """The most that this process has held, since `growth_mb` began if it did; None: not known."""
    try:
        return _status_mb("VmHWM")
    except OSError:
        return None


def _reset_peak() -> bool:
    try:
        Path("/proc/self/clear_refs").write_text("5")
        return _status_mb("VmHWM") - _status_mb("VmRSS") < 4
    except OSError:
        return False


def _status_mb(field: str) -> float:
    for line in STATUS.read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024 / 1e6
    raise OSError(f"no {field} in {STATUS}")


def _give_back() -> None:
    """Free heap goes back to the system, so that the run cannot live on what loading left."""
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (AttributeError, OSError, TypeError):  # not glibc
        return


def _sampled(run: Callable[[], Any], process: Any) -> float:
    before = peak = process.memory_info().rss
    stop = threading.Event()

    def watch() -> None:
        nonlocal peak
        while not stop.wait(0.001):
            peak = max(peak, process.memory_info().rss)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        keep = run()
        peak = max(peak, process.memory_info().rss)
        del keep
    finally:
        stop.set()
        thread.join()
    return float(peak - before) / 1e6


def in_child(
    program: Sequence[str],
    task: dict[str, Any],
    timeout: float = 900,
    script: Path = ROOT / "bench",
) -> dict[str, Any]:
    """Run a program of bench/, by its arguments, with --child and the task on its standard input.

    script: what has these arguments, where it is another than `python bench`.

    What it passed to `report`; {"error": ...} if it died: only the kind of the error is kept, since
    messages hold paths.
    """
    command = [sys.executable, str(script), *program, "--child"]
    try:
        done = subprocess.run(
            command, input=json.dumps(task), capture_output=True, text=True, timeout=timeout,
            check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return {"error": f"longer than {timeout:.0f} s"}
    for line in done.stdout.splitlines():
        if line.startswith(MARK):
            return dict(json.loads(line.removeprefix(MARK)))
    print(done.stderr[-2000:], file=sys.stderr)
    if done.returncode < 0:
        return {"error": f"killed by signal {-done.returncode} (out of memory?)"}
    last = (done.stderr.strip().splitlines() or ["no message"])[-1]
    return {"error": last.split(":")[0]}


def task() -> dict[str, Any]:
    """In the child: what `in_child` was given."""
    return dict(json.load(sys.stdin))


def report(result: dict[str, Any]) -> None:
    """What a child has to say, for `in_child`."""
    print(MARK + json.dumps(result), flush=True)
