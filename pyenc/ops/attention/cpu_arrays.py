"""What the C++ kernels of attention are given beside q, k and v: made of lengths, positions and a
bias, and checked on the way.

Shapes: T packed tokens, B sequences, H heads.
"""

from __future__ import annotations

import itertools
import math
from typing import NamedTuple

import torch
from torch import Tensor

from ...errors import InputError
from ..launch import DTYPE_CODES, check_like, check_memory, pointer
from ..validation import check_cu_seqlens, check_dense_bias, check_positions, sequence_bounds
from .along import Falls, falls_of, spread
from .bias import relative_position_bucket
from .far import FULL, far_bias, fitting
from .terms import Terms

OP = "attention"

# The codes of csrc/attention/arguments.h.
BIAS_CODES = {"none": 0, "alibi": 1, "t5": 2, "line": 2, "dense": 3}

# Lanes of the widest strip of queries, all of which a line of biases by distance must cover.
LINE_PADDING = 64

# Tokens of the longest sequence from which on what may be left out of a line is worth its bounds;
# csrc/attention/plan.h leaves nothing out of shorter ones than kShortestSkipping.
WORTH_FALLS = 320

# Places and differences of positions are float32 inside.
MAX_SPAN = 2**24


class Arrays(NamedTuple):
    """What is made of lengths, positions and a bias, as csrc/attention/arguments.h wants it."""

    cu_seqlens: Tensor
    places: Tensor
    bias: Tensor | None
    dtype: int
    reach: int
    falls: Falls | None
    far: bool  # whether there may be rows that blocks of torch are to serve (far.py)


def arrays_of(shape: torch.Size, cu_seqlens: Tensor, terms: Terms, skip_eps: float) -> Arrays:
    """Of a call on (T, H) heads."""
    tokens, heads = shape
    check_cu_seqlens(OP, cu_seqlens)
    check_memory(OP, cu_seqlens=cu_seqlens)
    # A copy: what others write to theirs once it was checked, no kernel is to read.
    cu_seqlens = cu_seqlens.to(torch.int64, copy=True).contiguous()
    bounds = sequence_bounds(OP, cu_seqlens, tokens)
    places = _places(cu_seqlens, bounds, tokens, terms.positions)
    if terms.kind not in BIAS_CODES or (terms.tensor is None) != (terms.kind == "none"):
        held = "no tensor" if terms.tensor is None else "a tensor"
        raise InputError(f"{OP}: a bias of kind {terms.kind!r} with {held}")
    pointer(terms.tensor)  # torch, which looks at its numbers first, does not ask
    tensor, dtype, reach = _bias(terms, heads, bounds, places)
    falls = None
    longest = _longest(bounds)
    if terms.kind == "line" and tensor is not None and skip_eps > 0 and longest >= WORTH_FALLS:
        falls = falls_of(tensor, int(places.max()), longest, skip_eps)
    far = terms.kind == "dense"
    if tensor is not None and not far:
        span = int(places.max()) if terms.positions is not None and tokens else longest
        far = far_bias(terms.kind, terms.tensor, terms.max_distance, span)
    return Arrays(cu_seqlens, places, tensor, dtype, reach, falls, far)


def _places(
    cu_seqlens: Tensor, bounds: list[int], num_tokens: int, positions: Tensor | None
) -> Tensor:
    """(T,) float32: how far each token is from the first of its sequence."""
    if num_tokens == 0:
        return torch.empty(0, dtype=torch.float32, device="cpu")
    at = torch.arange(num_tokens, device="cpu")
    if positions is not None:
        check_memory(OP, positions=positions)
        if positions.shape != (num_tokens,) or positions.dtype not in (torch.int32, torch.int64):
            raise InputError(
                f"{OP}: positions must be ({num_tokens},) int32 or int64; got "
                f"{tuple(positions.shape)} {positions.dtype}"
            )
        check_positions(OP, positions, bounds)
        at = positions.to(torch.int64)
    if len(bounds) == 2:
        places = at - at[0]
    else:
        firsts = at[cu_seqlens[:-1].clamp(max=num_tokens - 1)]
        places = at - torch.repeat_interleave(firsts, cu_seqlens.diff(), output_size=num_tokens)
    if num_tokens > MAX_SPAN or positions is not None:
        span = int(places.max())
        if span > MAX_SPAN:
            raise InputError(
                f"{OP}: positions of a sequence span {span}, the 'cpu' backend serves at most "
                f"{MAX_SPAN}; use backend='torch'"
            )
    return places.to(torch.float32)


def _bias(
    terms: Terms, heads: int, bounds: list[int], places: Tensor
) -> tuple[Tensor | None, int, int]:
    """(the bias's tensor as csrc/attention/arguments.h wants it, its dtype code, its reach)."""
    tensor = terms.tensor
    if terms.kind == "none" or tensor is None:
        return None, 0, 0
    check_memory(OP, bias=tensor)
    tensor = tensor.detach()
    if terms.kind == "alibi":
        check_like(OP, "slopes", tensor, (heads,), tensor.dtype)
        # In base 2 it is a number yet; beside such a slope a query sees itself alone.
        slopes = torch.where(tensor.isinf(), tensor, tensor.clamp(-FULL, FULL))
        return slopes.to(torch.float32).contiguous(), 0, 0
    if terms.kind in ("t5", "line"):
        reach = _longest(bounds) + LINE_PADDING
        if terms.positions is not None and len(places):
            reach = max(reach, min(terms.max_distance, int(places.max())))
        if terms.kind == "line":
            check_like(OP, "line", tensor, (heads, 2 * terms.max_distance + 1), tensor.dtype)
            line = spread(fitting(tensor, torch.float32), reach).flip(1).contiguous()
            return _finite_in_base_2(line), 0, reach
        check_like(OP, "table", tensor, (tensor.shape[0], heads), tensor.dtype)
        line = fitting(tensor, torch.float32).t()[:, buckets(terms, reach)].contiguous()
        return _finite_in_base_2(line), 0, reach
    side = tensor.shape[-1]
    check_like(OP, "bias", tensor, (heads, side, side), tensor.dtype)
    check_dense_bias(OP, tensor, bounds)
    if tensor.dtype not in DTYPE_CODES:
        tensor = fitting(tensor, torch.float32)
    return tensor.contiguous(), DTYPE_CODES[tensor.dtype], side


def _finite_in_base_2(line: Tensor) -> Tensor:
    """What is so negative that log2(e) of it is no number any more, as csrc/attention/tile.h has a
    dense bias: it hides a key from others alone. In place."""
    return line.masked_fill_((line < -FULL) & (line != -math.inf), -FULL)


def _longest(bounds: list[int]) -> int:
    return max((b - a for a, b in itertools.pairwise(bounds)), default=0)


def buckets(terms: Terms, reach: int) -> Tensor:
    """(2 reach + 1,): the bucket of j - i for each i - j from -reach to reach."""
    assert terms.tensor is not None
    ahead = torch.arange(reach, -reach - 1, -1, device="cpu")
    return relative_position_bucket(ahead, terms.tensor.shape[0], terms.max_distance)
