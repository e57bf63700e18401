"""The rotary embedding on the CPU through the C++ extension.

Shapes: T packed tokens, H heads, D head dim, P positions.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ...errors import InputError
from ..launch import (
    DTYPE_CODES,
    check_contiguous,
    check_dtype,
    check_like,
    check_memory,
    module_for,
    pointer,
)

OP = "rotary"


def turn(
    x: Tensor, cos: Tensor, sin: Tensor, positions: Tensor, back: bool = False,
    within: bool = False,
) -> Tensor:  # fmt: skip
    """Each pair (d, d + D/2) of x turned by its token's angle, or back by it.

    x (T, H, D) float32, bfloat16 or float16, last axis contiguous; cos, sin (P, D/2) float32 and
    positions (T,) int64 in [0, P), contiguous; all on the CPU. Returns (T, H, D), contiguous.
    within: the positions are known to be there, and are not looked at. Raises InputError on
    arguments it cannot serve, BackendError without the extension.
    """
    check_dtype(OP, "x", x)
    check_memory(OP, x=x)
    if x.ndim != 3 or x.shape[2] % 2 or x.stride(-1) != 1:
        raise InputError(
            f"{OP}: x must be (T, H, D) with D even and contiguous, got {tuple(x.shape)} with "
            f"strides {x.stride()}"
        )
    tokens, heads, dim = x.shape
    check_like(OP, "cos", cos, (cos.shape[0], dim // 2), torch.float32)
    check_like(OP, "sin", sin, tuple(cos.shape), torch.float32)
    check_like(OP, "positions", positions, (tokens,), torch.int64)
    check_contiguous(OP, cos=cos, sin=sin, positions=positions)
    if not within:
        check_range(positions, cos.shape[0])
    out = x.new_empty(x.shape)
    module_for(OP).rotary_turn(
        DTYPE_CODES[x.dtype], pointer(x), x.stride(0), x.stride(1), pointer(cos),
        pointer(sin), positions.data_ptr(), tokens, heads, dim, back, torch.get_num_threads(),
        out.data_ptr(),
    )  # fmt: skip
    return out


def check_range(positions: Tensor, count: int, op: str = "rotary") -> None:
    """Every position has a row in the tables."""
    if positions.numel() == 0:
        return
    low, high = (int(x) for x in positions.aminmax())
    if low < 0 or high >= count:
        raise InputError(
            f"{op}: positions run from {low} to {high}, the tables from 0 to {count - 1}"
        )
