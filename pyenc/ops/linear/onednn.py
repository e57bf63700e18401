"""Products of linear layers through oneDNN, with a weight packed beforehand or as it lies: can it
serve, and should it?

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
from ..activation import activate
from ..backend import BACKENDS, OF_LINEAR, compiling
from ..constant import constant_result
from ..unseen import unseen
from . import activated, choices, packs

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
VARIABLE = "PYENC_LINEAR"
WAYS = (*OF_LINEAR, "torch")

MIN_WORK = 2**24
"""Multiplications below which looking up a pack costs what it could save."""

MUCH = 1.5
LITTLE_WORK = {"onednn": 2**20, "amx": 2**20, "forward": 2**22, "unpacked": 2**22}
"""The same by the table's way where its gain is `MUCH` or more: short texts' products gain too."""

ROUNDED = {"bf16": 2.0**-8, "tf32": 2.0**-10}
"""What operands of float32 may be rounded by where torch's switches allow it."""

_lock = threading.RLock()
_tried: dict[tuple[torch.dtype, str], str | None] = {}


def pack(weight: Tensor) -> Tensor:
    ops: Any = torch.ops.mkldnn
    packed: Tensor = ops._reorder_linear_weight(weight)
    return packed


def run(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    activation: str,
    fused: bool | None = None,
) -> Tensor:
    """activation(x W^T + b) of x (..., C), weight (F, C) packed or as it lies, bias (F,); `fused`:
    whether oneDNN itself takes GELU (default: the table's choice)."""
    if activation == "gelu" and (fuses(x.dtype) if fused is None else fused):
        return pointwise(x, weight, bias, "gelu")
    y = pointwise(x, weight, bias, "none")
    if not activation:
        return y
    in_place = activated.why_not(y, y, None) is None
    return activated.activate_(y, None, activation) if in_place else activate(y, activation)


def pointwise(x: Tensor, weight: Tensor, bias: Tensor | None, activation: str) -> Tensor:
    # The op reads a bias as if its numbers lay side by side, whatever its stride.
    return _op(x, _dense(weight), None if bias is None else bias.contiguous(), activation)


def is_dense(matrix: Tensor) -> bool:
    """Whether its rows lie one behind the other, or its columns do."""
    return matrix.is_contiguous() or matrix.t().is_contiguous()


def _dense(weight: Tensor) -> Tensor:
    """A weight as it lies, or a copy: with gaps, or of one row for all, it goes through plain loops
    there, a thousand times as slow."""
    if weight.layout != torch.strided or is_dense(weight):
        return weight
    columns = weight.stride(0) < weight.stride(1)
    return weight.t().contiguous().t() if columns else weight.contiguous()


def _op(x: Tensor, weight: Tensor, bias: Tensor | None, activation: str) -> Tensor:
    ops: Any = torch.ops.mkldnn
    # "none" is the algorithm of the exact GELU, and of no activation.
    y: Tensor = ops._linear_pointwise(x, weight, bias, activation, [], "none")
    return y


def linear(x: Tensor, weight: Tensor, bias: Tensor | None, activation: str) -> Tensor:
    """`run` with the pack kept for this weight."""
    return run(x, packs.packed(weight, pack), bias, activation)


def why_not(dtype: torch.dtype) -> str | None:
    """Why oneDNN cannot serve this dtype here, in one line, or None; tried once, and once for each
    precision that torch is asked for."""
    if dtype not in DTYPES:
        return f"it has no {dtype} kernel"
    asked = precision() if dtype == torch.float32 else "ieee"
    with _lock:
        if (dtype, asked) not in _tried:
            with unseen():
                _tried[dtype, asked] = _try(dtype, ROUNDED.get(asked, torch.finfo(dtype).eps))
        return _tried[dtype, asked]


def precision() -> str:
    """What torch's switches allow products of float32 on a CPU to be made in: "ieee", "tf32" or
    "bf16"."""
    backends: Any = torch.backends
    for owner in (getattr(backends.mkldnn, "matmul", None), backends.mkldnn, backends):
        asked: str = getattr(owner, "fp32_precision", "none")
        if asked != "none":
            return asked
    return "ieee"


def unavailable(dtype: torch.dtype) -> str | None:
    """The same now: torch's switch for oneDNN may be off."""
    if compiling():
        return _known(str(dtype))
    if not torch.backends.mkldnn.enabled:
        return "torch.backends.mkldnn is disabled"
    return why_not(dtype)


@constant_result
def _known(dtype: str) -> str | None:
    """As known when torch.compile traces."""
    return why_not(getattr(torch, dtype.removeprefix("torch.")))


def not_preferred(dtype: torch.dtype, way: str = "onednn") -> str | None:
    """Why F.linear comes before one of the table's ways, "onednn" (packed), "forward" or
    "unpacked", or "amx" or "amx_unpacked", or None: by PYENC_LINEAR, else by the table."""
    asked = forced()
    if asked is not None:
        name = "amx" if way in ("amx", "amx_unpacked") else "onednn"
        return None if asked == name else f"{VARIABLE}={asked}"
    return choices.choice(dtype).why_not(way)


def min_work(dtype: torch.dtype, way: str = "onednn") -> int:
    """Multiplications from which on it gains, by the table."""
    gain = choices.choice(dtype).gains.get(way, False)
    return LITTLE_WORK[way] if gain is not True and gain >= MUCH else MIN_WORK


def fuses(dtype: torch.dtype) -> bool:
    """Whether GELU comes in the same pass."""
    return choices.choice(dtype).prefers("gelu_fused")


def compiles(dtype: torch.dtype) -> bool:
    """Whether products of many rows without a gradient go to oneDNN, which compiles one for each
    number of rows, and keeps it."""
    if dtype in DTYPES and forced() is None and choices.choice(dtype).prefers("wide"):
        dtype = torch.float32
    if unavailable(dtype) is not None:
        return False
    ours = any(not_preferred(dtype, way) is None for way in ("onednn", "forward"))
    # F.linear takes halves there too; matrix units have a kernel of ours for bfloat16.
    halves = dtype != torch.float32 and not_preferred(dtype, "amx") is not None
    return ours or halves


def forced() -> str | None:
    """What PYENC_LINEAR asks for, of `WAYS`; None for the table's choice."""
    asked = os.environ.get(VARIABLE) or "auto"
    if asked != "auto" and asked not in WAYS:
        whole = f"; PYENC_BACKEND={asked} asks all ops for it" if asked in BACKENDS else ""
        raise BackendError(
            f"{VARIABLE} must be auto, {', '.join(WAYS[:-1])} or {WAYS[-1]}, got {asked!r}{whole}"
        )
    return None if asked == "auto" else asked


def _try(dtype: torch.dtype, eps: float) -> str | None:
    # Tokens, channels, activation, and what rounding a few times may do to values of their size, in
    # units of eps. A sum of many halves that is not kept wider is further off: oneDNN's of packed
    # float16 on arm64.
    cases = [(tokens, 48, name, 16) for tokens in (5, 1) for name in ("none", "gelu")]
    if dtype != torch.float32:
        cases.append((5, 1024, "none", 2))
    try:
        for tokens, channels, activation, roundings in cases:
            x, weight, bias = _sample(dtype, tokens, channels)
            exact = F.linear(x.double(), weight.double(), bias.double())
            exact = F.gelu(exact) if activation == "gelu" else exact
            allowed = roundings * eps * max(1.0, exact.abs().max().item())
            for lies in (pack(weight), weight, weight.t().contiguous().t()):
                got = _op(x, lies, bias, activation).double()
                off = (got - exact).abs().max().item()
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

    return values(tokens, channels), values(48, channels), values(48)
