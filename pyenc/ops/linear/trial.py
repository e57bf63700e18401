"""Two ways to a linear layer, timed beside each other on a small one, in milliseconds."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

MARGIN = 1.15
"""How much faster than `F.linear` another way must have been: less is noise, and costs memory."""

_ROUNDS, _SECONDS = 9, 0.02


@dataclass(frozen=True)
class Case:
    """A product small enough to be timed in milliseconds, and large enough to tell."""

    x: Tensor
    weight: Tensor
    bias: Tensor

    @staticmethod
    def of(dtype: torch.dtype, tokens: int = 256, channels: int = 512) -> Case:
        def values(*shape: int) -> Tensor:
            # Not random: the user's generator is left alone.
            count = torch.arange(math.prod(shape), dtype=torch.float32, device="cpu")
            return count.mul_(0.618).sin_().view(shape).to(dtype)

        return Case(values(tokens, channels), values(channels, channels), values(channels))


def ratio(old: Callable[[], object], new: Callable[[], object]) -> float:
    """Seconds of `old` by those of `new`, alternating; the more cautious of two estimates."""

    def seconds(function: Callable[[], object]) -> float:
        start = time.perf_counter()
        function()
        return time.perf_counter() - start

    old(), new()
    pairs: list[tuple[float, float]] = []
    start = time.perf_counter()
    while len(pairs) < 3 or (len(pairs) < _ROUNDS and time.perf_counter() - start < _SECONDS):
        pairs.append((seconds(old), seconds(new)))
    best = min(a for a, _ in pairs) / min(b for _, b in pairs)
    return min(best, statistics.median(a / b for a, b in pairs))
