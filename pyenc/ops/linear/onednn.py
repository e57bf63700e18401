"""Linear layers through oneDNN with a weight packed beforehand: can it serve, and is it faster?

`F.linear` takes float32 to MKL, which on some processors runs at half of oneDNN's rate; oneDNN is
reached through a private op of torch's, so it is tried before it is trusted, and timed before it is
preferred. Both happen once a process and dtype, when first needed.
"""

from __future__ import annotations

import os
import threading
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ...errors import BackendError
from . import packs, trial
from .trial import MARGIN, Case

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
VARIABLE = "PYENC_LINEAR"
_lock = threading.RLock()
_tried: dict[torch.dtype, str | None] = {}
_timed: dict[tuple[torch.dtype, str], float] = {}


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
    if x.device.type != "cpu" or why_not(x.dtype) or packs.why_not(weight):
        y = F.linear(x, weight, bias)
        return F.gelu(y) if activation else y
    packed = packs.packed(weight, pack)
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
                _timed[dtype, activation] = trial.ratio(
                    lambda: F.gelu(run(case.x, packed, case.bias, "")),
                    lambda: run(case.x, packed, case.bias, activation),
                )
            else:
                _timed[dtype, activation] = trial.ratio(
                    lambda: F.linear(case.x, case.weight, case.bias),
                    lambda: run(case.x, packed, case.bias, ""),
                )
        return _timed[dtype, activation]
