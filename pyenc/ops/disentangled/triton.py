"""Disentangled attention through its Triton kernel, forward alone: the gradient is that of blocks.

Shapes: T packed tokens, B sequences, H heads, D head dim, R rows of relative positions.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .. import triton_launch
from ..attention.registration import rows_contiguous
from ..registered import on_card_of
from ..sharing import shared
from .rows import DistanceRows
from .validation import OP, check_values

MAX_HEAD_DIM = 256
LONGEST = 2**20
"""Distances with rows of their own on each side, where positions may be as far apart as they like:
a line of them takes 8 MB."""
MOST_ROWS = 2**24
"""Of a table: the offsets of a tile's keys among a head's numbers are counted in 32 bits."""


def why_not(
    q: Tensor, dropout_p: float, rows: DistanceRows | None, positions: Tensor | None
) -> str | None:
    """Why the kernel cannot serve a call, or None; reads no values."""
    if dropout_p > 0:
        return "it has no dropout"
    if q.shape[-1] > MAX_HEAD_DIM:
        return f"head dim {q.shape[-1]} is more than {MAX_HEAD_DIM}"
    if rows is not None and rows.count > MOST_ROWS:
        return f"{rows.count} rows are more than {MOST_ROWS}"
    if rows is not None and positions is not None:
        reach = same_from(rows)
        if reach > LONGEST:
            return (
                f"with positions the rows of distances up to {reach} would be written down, and "
                f"{LONGEST} is the most"
            )
    return triton_launch.why_not(q)


def forward(
    q: Tensor, k: Tensor, v: Tensor, position_keys: Tensor | None, position_queries: Tensor | None,
    cu_seqlens: Tensor, positions: Tensor | None, rows: DistanceRows, scale: float,
) -> Tensor:  # fmt: skip
    """out (T, H, D) in q's dtype. On a card lengths, positions, and that all distances have a row,
    are taken on trust."""
    if not q.is_cuda:  # where a look at the values would wait for the device
        check_values(q, cu_seqlens, positions, rows)
    kernels = triton_launch.module_for("disentangled")
    reach = same_from(rows)
    if positions is None:  # whose distances are those of places
        reach = min(reach, max(q.shape[0] - 1, 0))
    wide = reach + kernels.MARGIN
    line = shared(lambda: line_of(rows, wide, q.device), (OP, "line", rows, wide, q.device))
    with on_card_of(q):
        out: Tensor = kernels.forward(
            *map(rows_contiguous, (q, k, v)), cu_seqlens.contiguous(), position_keys,
            position_queries, line, scale,
            None if positions is None else positions.contiguous(),
        )  # fmt: skip
    return out


def line_of(rows: DistanceRows, reach: int, device: torch.device) -> Tensor:
    """(2 reach + 1,) int32: the row of each distance from -reach on; made where it is read, as the
    blocks of the gradient make theirs."""
    distances = torch.arange(-reach, reach + 1, dtype=torch.int64, device=device)
    return rows.of(distances).to(torch.int32)


def same_from(rows: DistanceRows) -> int:
    """A distance from which on rows no longer change, on either side; few more than the least."""
    if not rows.buckets:
        return rows.span
    middle = rows.buckets // 2
    if middle == 1:  # of one bucket, whatever the logarithm
        return 2
    # Buckets grow by one for each of these steps, and beyond `span` all are held to one row.
    step = ((rows.max_distance - 1) / middle) ** (1 / (middle - 1))
    last = middle * step ** (rows.span - 1 - middle)
    # The logarithm is one of float32, and a card's may be another than a processor's.
    return int(last * (1 + 2.0**-10)) + 2
