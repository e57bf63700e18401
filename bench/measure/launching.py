"""What a call costs its caller on a card: in a loop of calls, and replayed as a CUDA graph.

The card's own time of an op (`clock.clock_for`) leaves out what Python takes to launch it. Here
that is in: a loop is as slow as the slower of the two, and a replay launches everything at once.
Neither overwrites the second-level cache between calls.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch

from pyenc.text.graph_card import capturing

MOST, LEAST, BUDGET = 50, 3, 0.25
"""Calls of one loop, and about how many seconds they may take."""


def back_to_back(run: Callable[[], Any], device: torch.device) -> float:
    """Seconds a call, of calls that nothing waits for but the last."""

    def loop(calls: int) -> float:
        _wait(device)
        start = time.perf_counter()
        for _ in range(calls):
            run()
        _wait(device)
        return (time.perf_counter() - start) / calls

    return loop(max(LEAST, min(MOST, int(BUDGET / max(loop(1), 1e-9)))))


def captured(run: Callable[[], Any], device: torch.device) -> tuple[torch.cuda.CUDAGraph, Any]:
    """(what replays `run`, what it writes its results to).

    Raises:
        RuntimeError: it cannot be captured, as what waits for the card cannot.
    """
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        for _ in range(2):  # what is made at a first call is made before the capture
            run()
    torch.cuda.current_stream(device).wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with capturing(graph, stream):
        out = run()
    return graph, out


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
