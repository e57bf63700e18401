"""Linear layers through oneDNN with a weight packed beforehand: can it serve, and should it?

`F.linear` takes float32 to MKL, which on some processors runs at half of oneDNN's rate; oneDNN is
reached through a private op of torch's, so its answers are tried before they are trusted, once a
process and dtype. Where it is preferred is data: `choices`.
"""

from __future__ import annotations

import math
import os
import threading
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ...errors import BackendError
from . import choices, packs

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
VARIABLE = "PYENC_LINEAR"
WAYS = ("bf16x6", "bf16x3", "onednn", "torch")
_lock = threading.RLock()
_tried: dict[torch.dtype, str | None] = {}


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
    if (
        x.device.type != "cpu"
        or not torch.backends.mkldnn.enabled
        or why_not(x.dtype)
        or packs.why_not(weight)
    ):
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


def not_preferred(dtype: torch.dtype) -> str | None:
    """Why F.linear comes first for this dtype, or None: by PYENC_LINEAR, else by the table."""
    asked = forced()
    if asked is not None:
        return None if asked == "onednn" else f"{VARIABLE}={asked}"
    return choices.choice(dtype).why_not("onednn")


def fuses(dtype: torch.dtype) -> bool:
    """Whether GELU comes in the same pass."""
    return choices.choice(dtype).prefers("gelu_fused")


def forced() -> str | None:
    """What PYENC_LINEAR asks for, of `WAYS`; None for the table's choice."""
    asked = os.environ.get(VARIABLE) or "auto"
    if asked != "auto" and asked not in WAYS:
        raise BackendError(
            f"{VARIABLE} must be auto, {', '.join(WAYS[:-1])} or {WAYS[-1]}, got {asked!r}"
        )
    return None if asked == "auto" else asked


@torch.no_grad()
def _try(dtype: torch.dtype) -> str | None:
    try:
        for tokens in (5, 1):
            x, weight, bias = _sample(dtype, tokens, 48)
            for activation in ("", "gelu"):
                got = run(x, pack(weight), bias, activation).double()
                exact = F.linear(x.double(), weight.double(), bias.double())
                exact = F.gelu(exact) if activation else exact
                off = (got - exact).abs().max().item()
                # What rounding to the dtype a few times may do to values of this size.
                allowed = 16 * torch.finfo(dtype).eps * max(1.0, exact.abs().max().item())
                if not off <= allowed:
                    return f"its answers are wrong here: off by {off:.3g}"
    except (AttributeError, RuntimeError, TypeError) as error:
        return f"this torch or processor cannot: {str(error).splitlines()[0]}"
    return None


def _sample(dtype: torch.dtype, tokens: int, channels: int) -> tuple[Tensor, Tensor, Tensor]:
    """x, weight and bias; not random: the user's generator is left alone."""

    def values(*shape: int) -> Tensor:
        count = torch.arange(math.prod(shape), dtype=torch.float32, device="cpu")
        return count.mul_(0.618).sin_().view(shape).to(dtype)

    return values(tokens, channels), values(channels, channels), values(channels)
