"""Linear layers through oneDNN with a weight packed beforehand: can it serve, and is it faster?

`F.linear` takes float32 to MKL, which on some processors runs at half of oneDNN's rate; oneDNN is
reached through a private op of torch's, so it is tried before it is trusted, and timed before it is
preferred. Both happen once a process and dtype, when first needed.
"""

from __future__ import annotations

import math
import os
import statistics
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import BackendError
from . import linear_packs

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
VARIABLE = "PYENC_LINEAR"
MARGIN = 1.15
"""How much faster it must have been: less is noise, and a pack costs the weight's memory again."""

_ROUNDS, _SECONDS = 9, 0.02
_lock = threading.RLock()
_tried: dict[torch.dtype, str | None] = {}
_timed: dict[tuple[torch.dtype, str], float] = {}


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


def pack(weight: Tensor) -> Tensor:
    ops: Any = torch.ops.mkldnn
    packed: Tensor = ops._reorder_linear_weight(weight)
    return packed


def run(x: Tensor, packed: Tensor, bias: Tensor | None, activation: str) -> Tensor:
    """x W^T + b, with `activation` "gelu" (exact) in the same pass or "" for none."""
    ops: Any = torch.ops.mkldnn
    # "none" is the algorithm of the exact GELU, and of no activation.
    y: Tensor = ops._linear_pointwise(x, packed, bias, activation or "none", [], "none")
    return y


def linear(x: Tensor, weight: Tensor, bias: Tensor | None, activation: str) -> Tensor:
    """`run` with the pack kept for this weight; F.linear where there can be none."""
    if x.device.type != "cpu" or why_not(x.dtype) or linear_packs.why_not(weight):
        y = F.linear(x, weight, bias)
        return F.gelu(y) if activation else y
    packed = linear_packs.packed(weight, pack)
    if activation and not fuses(x.dtype):
        return F.gelu(run(x, packed, bias, ""))
    return run(x, packed, bias, activation)


def why_not(dtype: torch.dtype) -> str | None:
    """Why oneDNN cannot serve this dtype here, in one line, or None; tried once."""
    with _lock:
        if dtype not in _tried:
            _tried[dtype] = _try(dtype) if dtype in DTYPES else f"it has no {dtype} kernel"
        return _tried[dtype]


def slower(dtype: torch.dtype, *, measure: bool = True) -> str | None:
    """Why oneDNN is not preferred for this dtype, or None: by PYENC_LINEAR, else by measurement.

    Without `measure`, only what is known already counts.
    """
    choice = forced()
    if choice is not None:
        return None if choice == "onednn" else f"{VARIABLE}={choice}"
    if not measure and (dtype, "") not in _timed:
        return "it has not been measured yet: call once before compiling"
    gain = _gain(dtype, "")
    return None if gain >= MARGIN else f"measured {gain:.2f}x F.linear, needs {MARGIN}x"


def fuses(dtype: torch.dtype) -> bool:
    """Whether GELU in the same pass was measurably faster than after it."""
    return _gain(dtype, "gelu") >= MARGIN


def forced() -> str | None:
    """What PYENC_LINEAR asks for, "onednn" or "torch"; None to measure."""
    choice = os.environ.get(VARIABLE) or "auto"
    if choice not in ("auto", "onednn", "torch"):
        raise BackendError(f"{VARIABLE} must be auto, onednn or torch, got {choice!r}")
    return None if choice == "auto" else choice


@torch.no_grad()
def _try(dtype: torch.dtype) -> str | None:
    try:
        for tokens in (5, 1):
            case = Case.of(dtype, tokens, 48)
            for activation in ("", "gelu"):
                got = run(case.x, pack(case.weight), case.bias, activation).double()
                exact = F.linear(case.x.double(), case.weight.double(), case.bias.double())
                exact = F.gelu(exact) if activation else exact
                off = (got - exact).abs().max().item()
                # What rounding to the dtype a few times may do to values of this size.
                allowed = 16 * torch.finfo(dtype).eps * max(1.0, exact.abs().max().item())
                if not off <= allowed:
                    return f"its answers are wrong here: off by {off:.3g}"
    except (AttributeError, RuntimeError, TypeError) as error:
        return f"this torch or processor cannot: {str(error).splitlines()[0]}"
    return None


@torch.no_grad()
def _gain(dtype: torch.dtype, activation: str) -> float:
    """How many times faster: oneDNN than F.linear or, of GELU, in one pass than in two."""
    with _lock:
        if (dtype, activation) not in _timed:
            case = Case.of(dtype)
            packed = pack(case.weight)
            if activation:
                _timed[dtype, activation] = _ratio(
                    lambda: F.gelu(run(case.x, packed, case.bias, "")),
                    lambda: run(case.x, packed, case.bias, activation),
                )
            else:
                _timed[dtype, activation] = _ratio(
                    lambda: F.linear(case.x, case.weight, case.bias),
                    lambda: run(case.x, packed, case.bias, ""),
                )
        return _timed[dtype, activation]


def _ratio(old: Callable[[], object], new: Callable[[], object]) -> float:
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
