"""The tiles of a walk through a sequence, and their rows: which there are, reading and writing.

Shapes and names: as in forward_kernel.py.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ..slots import GRAIN


@triton.jit
def load_rows(
    p_x, begin, o_rows, n, o_d, s_t, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr
):  # fmt: skip
    """(rows, D) of one head's rows of a sequence, zeros beyond either end."""
    p_rows = p_x + (begin + o_rows)[:, None] * s_t + o_d[None, :]
    mask = o_rows[:, None] < n
    if BLOCK_D != HEAD_DIM:
        mask = mask & (o_d[None, :] < HEAD_DIM)
    return tl.load(p_rows, mask=mask, other=0.0)


@triton.jit
def store_rows(
    p_x, b_x, begin, o_rows, n, o_d, s_t, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr
):  # fmt: skip
    """The other way round."""
    p_rows = p_x + (begin + o_rows)[:, None] * s_t + o_d[None, :]
    mask = o_rows[:, None] < n
    if BLOCK_D != HEAD_DIM:
        mask = mask & (o_d[None, :] < HEAD_DIM)
    tl.store(p_rows, b_x.to(p_x.dtype.element_ty), mask=mask)


@triton.jit
def total(b_x):
    """The sum of all numbers of a block, at once: a sum over one axis and then over the other, of
    what matrix units gave, is what Triton before 3.9 compiles for no card of compute capability
    10 (an error of its pass OptimizeTMemLayouts)."""
    return tl.sum(b_x)


@triton.jit
def phases(
    first, last, i_first, i_last, n,
    AFFINE_FROM: tl.constexpr, PLAIN: tl.constexpr, BLOCK_N: tl.constexpr, LEAST: tl.constexpr = 0,
):  # fmt: skip
    """Where the affine tiles end and begin again in [first, last): (a, b, c).

    [first, a) lie left of the rows i_first to i_last, [b, last) right of them, [a, b) between. All
    rows of a block count, also those beyond the sequence, since its extreme positions do. Of those
    on the right [b, c) are full; [c, last) is the sequence's last where that is not, or none.
    PLAIN: no bias at all; [first, a) are then all full tiles, [a, b) the one that is not, and as
    many more as it takes for LEAST keys.
    """
    if PLAIN:
        a = tl.minimum(tl.maximum(tl.maximum(n - LEAST, 0) // BLOCK_N, first), last)
        b = last
    elif AFFINE_FROM is not None:
        a = tl.maximum(i_first - AFFINE_FROM + 1, 0) // BLOCK_N
        b = (i_last + AFFINE_FROM + BLOCK_N - 1) // BLOCK_N
        a = tl.minimum(tl.maximum(a, first), last)
        b = tl.minimum(tl.maximum(b, a), last)
    else:
        a = first
        b = last
    c = tl.maximum(tl.minimum(n // BLOCK_N, last), b)
    return a, b, c


@triton.jit
def unforeseen(last, p_cu, PLAIN: tl.constexpr):
    """The same, by way of cu_seqlens' first number, 0. Where the compiler can foresee a loop's
    bounds, Triton 3.6's ptxas puts every product of the kernel in series (C7515)."""
    if PLAIN:
        return last
    else:
        return last + tl.load(p_cu).to(tl.int32)


@triton.jit
def window_tiles(
    first_row, last_row, n, behind, ahead, HAS_WINDOW: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """The tiles [first, last) of a sequence that rows first_row to last_row can see.

    So many tokens behind and ahead, -1 for all: positions are as far apart as places are, or more.
    """
    first = 0
    last = (n + BLOCK - 1) // BLOCK
    if HAS_WINDOW:
        if behind >= 0:
            first = tl.maximum(first_row - behind, 0) // BLOCK
        if ahead >= 0:
            last = tl.minimum(last, (last_row + ahead) // BLOCK + 1)
    return first, last


@triton.jit
def met_tiles(p_ranges, i_slot, first, last, BLOCK: tl.constexpr):
    """[first, last) and the tiles that a slot's range of grains holds, if those are fewer."""
    n_parts: tl.constexpr = GRAIN // BLOCK
    p_range = p_ranges + i_slot.to(tl.int64) * 2
    first = tl.maximum(first, tl.load(p_range) * n_parts)
    return first, tl.minimum(last, tl.load(p_range + 1) * n_parts)
