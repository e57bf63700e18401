"""Checks that the ops share: an error in Python before any kernel reads a pointer."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..errors import InputError, InputTypeError
from .freed import check_there

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
MASKS = (torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, *FLOATS)


def check_float(op: str, **tensors: Tensor | None) -> None:
    """Every given tensor is floating point and dense, on the device of the first, and was not
    freed."""
    check_float_of_any_layout(op, **tensors)
    for name, tensor in tensors.items():
        if tensor is not None:
            check_dense(op, name, tensor)


def check_float_of_any_layout(op: str, **tensors: Tensor | None) -> None:
    """As `check_float`, where torch's own product takes sparse tensors too."""
    first: tuple[str, Tensor] | None = None
    for name, tensor in tensors.items():
        if tensor is None:
            continue
        if not isinstance(tensor, Tensor):
            raise InputError(f"{op}: {name} must be a tensor, got {type(tensor).__name__}")
        if tensor.dtype not in FLOATS:
            raise InputError(f"{op}: {name} must be float16/32/64 or bfloat16, got {tensor.dtype}")
        if first is None:
            first = (name, tensor)
        elif tensor.device != first[1].device:
            raise InputError(
                f"{op}: {name} is on {tensor.device}, {first[0]} on {first[1].device}; "
                "all tensors must share a device"
            )
    check_there(op, tensors)


def check_dense(op: str, name: str, tensor: Tensor) -> None:
    """A tensor has a number at every place, and strides that say where: no sparse one."""
    if tensor.layout is not torch.strided:
        raise InputError(f"{op}: {name} must be dense (torch.strided), got {tensor.layout}")


def check_mask(op: str, name: str, mask: Tensor) -> None:
    """A mask has a number at every place, and none that loses a part as it is compared or cast."""
    if mask.dtype not in MASKS:
        raise InputError(
            f"{op}: {name} must be of bool, integers (uint8, int8 to int64) or floats (16 bits to "
            f"64), got {mask.dtype}"
        )
    check_dense(op, name, mask)


def check_switch(op: str, name: str, value: Any) -> None:
    """True or False; "no" would be true."""
    if value is not True and value is not False and not isinstance(value, torch.SymBool):
        raise InputTypeError(f"{op}: {name} must be True or False, got {value!r:.80}")


def check_eps(op: str, eps: Any) -> None:
    """What is added to a variance before its root is taken is finite and not negative."""
    try:
        right = bool(is_eps(eps))
    except TypeError:
        raise InputTypeError(f"{op}: eps must be a number, got {eps!r:.80}") from None
    if not right:
        raise InputError(f"{op}: eps must be finite and not negative, got {eps}")


def is_eps(eps: float) -> bool:
    """Compared alone, for a traced graph's numbers are symbols; NaN is in no range."""
    return 0 <= eps < math.inf


def check_cu_seqlens(op: str, cu_seqlens: Tensor) -> None:
    """Shape and dtype of `cu_seqlens` (its values are `sequence_bounds`'s business)."""
    if not isinstance(cu_seqlens, Tensor):
        raise InputError(f"{op}: cu_seqlens must be a tensor, got {type(cu_seqlens).__name__}")
    if cu_seqlens.ndim != 1 or cu_seqlens.shape[0] < 1:
        raise InputError(f"{op}: cu_seqlens must be (B + 1,), got {tuple(cu_seqlens.shape)}")
    if cu_seqlens.dtype not in (torch.int32, torch.int64):
        raise InputError(f"{op}: cu_seqlens must be int32 or int64, got {cu_seqlens.dtype}")
    check_dense(op, "cu_seqlens", cu_seqlens)


def check_given(op: str, **tensors: Tensor | None) -> None:
    """Tensors that a call cannot be without are there.

    Raises:
        InputTypeError: names the one that is not.
    """
    for name, tensor in tensors.items():
        if not isinstance(tensor, Tensor):
            raise InputTypeError(f"{op}: {name} must be a tensor, got {type(tensor).__name__}")


def check_beside(op: str, x: Tensor, **tensors: Tensor | None) -> None:
    """Whole numbers are on x's device: a kernel would read them there, and an op of some tensors on
    meta would give memory that nobody wrote; and they were not freed."""
    for name, tensor in tensors.items():
        if tensor is not None and tensor.device != x.device:
            raise InputError(
                f"{op}: {name} is on {tensor.device}, the other tensors on {x.device}; all must "
                "share a device"
            )
        if tensor is not None:
            check_dense(op, name, tensor)
    check_there(op, tensors)


def sequence_bounds(op: str, cu_seqlens: Tensor, num_tokens: int) -> list[int]:
    """The values of `cu_seqlens` on the host, checked: 0 = c0 <= c1 <= ... <= cB = num_tokens."""
    bounds: list[int] = cu_seqlens.tolist()
    check_bounds(op, bounds, num_tokens)
    return bounds


def check_bounds(op: str, bounds: Sequence[int], num_tokens: int) -> None:
    """Host-side `cu_seqlens` must start at 0, never decrease, and end at the number of tokens."""
    if bounds[0] != 0:
        raise InputError(f"{op}: cu_seqlens must start at 0, got {bounds[0]}")
    for b in range(len(bounds) - 1):
        if bounds[b + 1] < bounds[b]:
            raise InputError(
                f"{op}: cu_seqlens decreases from {bounds[b]} to {bounds[b + 1]} at index {b + 1}"
            )
    if bounds[-1] != num_tokens:
        raise InputError(
            f"{op}: cu_seqlens ends at {bounds[-1]}, but there are {num_tokens} packed tokens"
        )


def check_positions(op: str, positions: Tensor, bounds: Sequence[int]) -> None:
    """Positions must increase strictly inside each sequence (they carry masks with holes), and
    their differences be numbers of 64 bits."""
    if positions.shape[0] < 2:
        return
    rises = positions[1:] > positions[:-1]
    starts = [b - 1 for b in bounds[1:-1] if 0 < b < positions.shape[0]]
    rises[torch.tensor(starts, dtype=torch.long, device=rises.device)] = True
    if not bool(rises.all()):
        t = int((~rises).nonzero()[0]) + 1
        raise InputError(
            f"{op}: positions must increase strictly in each sequence; token {t} has "
            f"{int(positions[t])} after {int(positions[t - 1])}"
        )
    ends = [(a, b - 1) for a, b in itertools.pairwise(bounds) if b > a]
    first, last = positions[torch.tensor(ends, dtype=torch.long, device=rises.device)].long().t()
    wraps = last - first < 0
    if bool(wraps.any()):
        b = int(wraps.nonzero()[0])
        raise InputError(
            f"{op}: positions of a sequence run from {int(first[b])} to {int(last[b])}, which is "
            "further than 64 bits can tell"
        )


def check_dense_bias(op: str, bias: Tensor, bounds: Sequence[int]) -> int:
    """A dense bias (H, N, N) covers the longest sequence, whose length is returned."""
    longest = max((b - a for a, b in itertools.pairwise(bounds)), default=0)
    if longest > bias.shape[-1]:
        raise InputError(
            f"{op}: the longest sequence has {longest} tokens, but the dense bias is "
            f"{tuple(bias.shape)}"
        )
    return longest
