"""Timing peers in turns, by the wall clock or by the card's own."""

from __future__ import annotations

import ctypes
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

WAIT_CYCLES = 4_000_000
MOST_CYCLES = 64 * WAIT_CYCLES
"""About two milliseconds of a card at 2 GHz, in which most ops here are launched, to an eighth of a
second, for those that go a sequence at a time."""

IN_A_ROW = 0.25
"""Seconds that calls in a row take."""

Clock = Callable[[Callable[[], Any]], float]
"""Runs something and says how many seconds it took."""


def wall_clock(run: Callable[[], Any]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def in_a_row(run: Callable[[], Any]) -> float:
    """Seconds of a call; of a short one the mean of calls in a row, `IN_A_ROW` seconds long.

    What others leave in the caches, and threads of theirs that still spin, would be most of a short
    call's time.
    """
    seconds = wall_clock(run)
    if seconds >= IN_A_ROW:
        return seconds
    count = 1 + int(IN_A_ROW / seconds)

    def row() -> None:
        for _ in range(count):
            run()

    return wall_clock(row) / count


def clock_for(device: torch.device) -> Clock:
    """The wall clock on a CPU; on a GPU the device's own time, its second-level cache overwritten.

    There the card is kept waiting before the first event until the host has handed everything over:
    else a short op's time would be that of the Python that launches it. What a caller pays for that
    is another figure, and none where a CUDA graph replays.
    """
    if device.type != "cuda":
        return wall_clock
    # Larger than any card's cache, so that no run finds its inputs there.
    scratch = torch.empty(256 * 2**20, dtype=torch.int8, device=device)

    waits: dict[int, int] = {}  # by run: cycles in which the host launches it

    def once(run: Callable[[], Any], cycles: int) -> tuple[float, bool]:
        """(seconds, whether the card began before the host had done)."""
        scratch.zero_()
        torch.cuda._sleep(cycles)
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        run()
        end.record()
        early = start.query()
        torch.cuda.synchronize(device)
        return float(start.elapsed_time(end)) / 1e3, early

    def clock(run: Callable[[], Any]) -> float:
        if id(run) in waits:
            return once(run, waits[id(run)])[0]
        cycles = WAIT_CYCLES
        seconds, early = once(run, cycles)
        while early and cycles < MOST_CYCLES:
            cycles *= 8
            seconds, early = once(run, cycles)
        # What waits for the card itself is never ahead of it: its time holds some of the host's.
        waits[id(run)] = WAIT_CYCLES if early else cycles
        return seconds

    return clock


def waiting_clock(device: torch.device) -> Clock:
    """What a user waits for: the wall clock, on a GPU until the device has done.

    What Python takes to launch the work is in it, where the device has to wait for that.
    """
    if device.type != "cuda":
        return wall_clock

    def clock(run: Callable[[], Any]) -> float:
        torch.cuda.synchronize(device)
        start = time.perf_counter()
        run()
        torch.cuda.synchronize(device)
        return time.perf_counter() - start

    return clock


def keep_freed_memory() -> None:
    """Make the C library keep what is freed, so that outputs come from memory already touched.

    A fresh page costs more to map than to fill, and large tensors get fresh ones at every call:
    without this all programs of a short op measure the kernel of the operating system.
    """
    trim_threshold, mmap_max = -1, -4  # of <malloc.h>
    try:
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(mmap_max, 0)
        mallopt(trim_threshold, 2**31 - 1)
    except (AttributeError, OSError, TypeError):  # not glibc
        return


def in_turns(
    runs: dict[str, Callable[[], Any]],
    *,
    repeats: int,
    budget: float = 7.0,
    least: int = 3,
    limit: float = 25.0,
    clock: Clock = wall_clock,
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
            seconds[name].append(clock(runs[name]))
        names = names[1:] + names[:1]
    return seconds


def summary(seconds: Sequence[float]) -> dict[str, Any]:
    """Median and spread: (slowest - fastest) / median, None of a single run."""
    median = statistics.median(seconds)
    spread = (max(seconds) - min(seconds)) / median if len(seconds) > 1 else None
    return {"seconds": list(seconds), "median": median, "spread": spread}


def ratios(medians: dict[str, float], subject: str | None) -> dict[str, float | None]:
    """How many times faster the subject is than each: median over the subject's median."""
    if subject is None:
        return dict.fromkeys(medians)
    return {name: median / medians[subject] for name, median in medians.items()}
