"""What `disentangled_attention` asks of its arguments: shapes and dtypes, then what only values can
tell. Shapes: T packed tokens, H heads, D head dim, R rows of relative positions."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ...errors import InputError
from ..attention.validation import check_number
from ..validation import (
    check_beside,
    check_cu_seqlens,
    check_float,
    check_given,
    check_positions,
    sequence_bounds,
)
from .rows import DistanceRows, reach_of

OP = "disentangled_attention"


def check_arguments(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens: Tensor,
    position_keys: Tensor | None,
    position_queries: Tensor | None,
    rows: DistanceRows,
    positions: Tensor | None,
    scale: float | None,
    dropout_p: float,
) -> None:
    """Everything that shapes and dtypes alone can tell."""
    check_given(OP, q=q, k=k, v=v, cu_seqlens=cu_seqlens)
    check_float(OP, q=q, k=k, v=v, position_keys=position_keys, position_queries=position_queries)
    if not q.shape == k.shape == v.shape or q.ndim != 3 or 0 in q.shape[1:]:
        raise InputError(
            f"{OP}: q, k, v must all be (T, H, D), H and D at least 1; got {tuple(q.shape)}, "
            f"{tuple(k.shape)}, {tuple(v.shape)}"
        )
    if not isinstance(rows, DistanceRows):
        raise InputError(f"{OP}: rows must be DistanceRows, got {type(rows).__name__}")
    if position_keys is None and position_queries is None:
        raise InputError(
            f"{OP}: position_keys or position_queries must be there; without either it is attention"
        )
    right = rows.count, *q.shape[1:]
    for name, x in (("position_keys", position_keys), ("position_queries", position_queries)):
        if x is not None and tuple(x.shape) != right:
            raise InputError(f"{OP}: {name} must be (R, H, D), {right}; got {tuple(x.shape)}")
    given = [x for x in (q, k, v, position_keys, position_queries) if x is not None]
    if len({x.dtype for x in given}) > 1:
        raise InputError(
            f"{OP}: q, k, v and what positions have must share a dtype; got "
            f"{', '.join(str(x.dtype) for x in given)}"
        )
    check_cu_seqlens(OP, cu_seqlens)
    check_beside(OP, q, cu_seqlens=cu_seqlens)
    if positions is not None:
        check_given(OP, positions=positions)
        check_beside(OP, q, positions=positions)
        if positions.shape != q.shape[:1]:
            raise InputError(
                f"{OP}: positions must be ({q.shape[0]},), got {tuple(positions.shape)}"
            )
        if positions.dtype not in (torch.int32, torch.int64):
            raise InputError(f"{OP}: positions must be int32 or int64, got {positions.dtype}")
    if not isinstance(dropout_p, (int, float)) or not 0 <= dropout_p < 1:
        raise InputError(f"{OP}: dropout_p must be in [0, 1), got {dropout_p!r}")
    check_number(f"{OP}: scale", scale)
    # Compared, for a traced graph's numbers are symbols.
    if scale is not None and not -math.inf < scale < math.inf:
        raise InputError(f"{OP}: scale must be finite, got {scale}")


def check_values(
    q: Tensor, cu_seqlens: Tensor, positions: Tensor | None, rows: DistanceRows
) -> list[int]:
    """What only the values can tell; returns the bounds on the host."""
    bounds = sequence_bounds(OP, cu_seqlens, q.shape[0])
    if positions is not None:
        check_positions(OP, positions, bounds)
    if rows.count < 2 * rows.span:
        rows.check_reach(OP, reach_of(bounds, positions))
    return bounds
