"""Scores of a tile of queries and keys from their dot products, in base 2.

Where a bias is affine on each side of the query (ALiBi), a tile off the diagonal needs one number a
key and one a query (`side_terms`). The former are the same in every tile, the latter go into what
is subtracted before the power: a score costs one addition more than without a bias.

Shapes and names: as in forward_kernel.py.
"""

from __future__ import annotations

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)
NO_SCORE = tl.constexpr(float("-inf"))


@triton.jit
def places_of(p_positions, begin, o_rows, n, HAS_POSITIONS: tl.constexpr):
    """Positions of rows of a sequence (n > 0) as float32, from its first one on; beyond its end,
    of the last one."""
    if HAS_POSITIONS:
        first = tl.load(p_positions + begin)
        at = tl.load(p_positions + begin + tl.minimum(o_rows, n - 1))
        return (at - first).to(tl.float32)
    else:
        return o_rows.to(tl.float32)


@triton.jit
def side_terms(
    SCORE: tl.constexpr, AFFINE_FROM: tl.constexpr, BY_DISTANCE: tl.constexpr, LEFT: tl.constexpr,
    b_i, b_j, nearest, i_head, p_params,
):  # fmt: skip
    """An affine bias as one number a query and one a key, in base 2: (b_row, b_column).

    nearest: the position of the key nearest the queries, so that neither is larger than the bias
    itself and the scores that matter most round least.
    """
    if LEFT:
        i_near = nearest + AFFINE_FROM
    else:
        i_near = nearest - AFFINE_FROM
    b_column = SCORE(b_j * 0.0, i_near, b_j, i_head, p_params)
    b_row = SCORE(b_i * 0.0, b_i, nearest, i_head, p_params)
    if BY_DISTANCE:  # the same number in all tiles, which takes it out of their loop
        corner = nearest_term(SCORE, AFFINE_FROM, LEFT, i_head, p_params)
    else:
        corner = SCORE(nearest * 0.0, i_near, nearest, i_head, p_params)
    return (b_row - corner) * LOG2E, b_column * LOG2E


@triton.jit
def nearest_term(
    SCORE: tl.constexpr, AFFINE_FROM: tl.constexpr, LEFT: tl.constexpr, i_head, p_params
):  # fmt: skip
    """What a pair is given where a side begins to be affine, of a score that goes by the distance,
    or is flat from there on; in base e. At positions that there are: none is below 0."""
    i_near: tl.constexpr = AFFINE_FROM if LEFT else 0
    j_near: tl.constexpr = 0 if LEFT else AFFINE_FROM
    at = i_head * 0.0
    return SCORE(at, at + i_near, at + j_near, i_head, p_params)


@triton.jit
def nearest_of(b_j, tile, LEFT: tl.constexpr, HAS_POSITIONS: tl.constexpr, BLOCK_N: tl.constexpr):
    """The position of a tile's key that is nearest to queries beyond it; on its right, or LEFT."""
    if HAS_POSITIONS:
        if LEFT:
            nearest = tl.max(b_j, 0)
        else:
            nearest = tl.min(b_j, 0)
    else:
        if LEFT:
            nearest = (tile * BLOCK_N + BLOCK_N - 1) * 1.0
        else:
            nearest = (tile * BLOCK_N) * 1.0
    return nearest


@triton.jit
def columns_of(
    SCORE: tl.constexpr, AFFINE_FROM: tl.constexpr, LEFT: tl.constexpr, i_head, p_params,
    BLOCK_N: tl.constexpr,
):  # fmt: skip
    """b_column of `side_terms` for any full tile, of a score that goes by the distance."""
    b_j = tl.arange(0, BLOCK_N).to(tl.float32)
    i_near: tl.constexpr = BLOCK_N - 1 + AFFINE_FROM if LEFT else -AFFINE_FROM
    return SCORE(b_j * 0.0, b_j * 0.0 + i_near, b_j, i_head, p_params) * LOG2E


@triton.jit
def column_factors(p_any, no_row, b_column, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    """b_column (N,) float32 as a product for `tl.dot` to add: (M, 16) of ones and (16, N), both
    bfloat16, three of whose rows add up to 24 bits of it.

    p_any: to where nothing is read from; no_row: 0, as the compiler cannot know. What might have
    been read goes to shared memory, like queries do; what is made in registers would be made again
    in every turn.
    """
    b_high = b_column.to(tl.bfloat16)
    b_rest = b_column - b_high.to(tl.float32)
    b_middle = b_rest.to(tl.bfloat16)
    b_low = (b_rest - b_middle.to(tl.float32)).to(tl.bfloat16)
    o_part = tl.arange(0, 16)[:, None]
    b_parts = tl.where(o_part == 1, b_middle[None, :], b_high[None, :])
    b_parts = tl.where(o_part == 2, b_low[None, :], b_parts)
    b_parts = tl.where(o_part < 3, b_parts, tl.zeros_like(b_parts))
    o_one = tl.arange(0, BLOCK_M)[:, None] * 16 + tl.arange(0, 16)[None, :]
    p_ones = p_any.to(tl.pointer_type(tl.bfloat16)) + o_one
    return tl.load(p_ones, mask=o_one < no_row, other=1.0), b_parts


@triton.jit
def pair_scores(
    SCORE: tl.constexpr, b_dot, b_i, b_j, scale, i_head, p_params, p_dense, s_dense, o_i, o_j, n,
    window_left, window_right, HAS_DENSE: tl.constexpr, HAS_WINDOW: tl.constexpr,
):  # fmt: skip
    """Scores of any block in base 2, from its dot products; -inf where a key is hidden.

    b_i, b_j (positions) and o_i, o_j (places) broadcast to the block; the last ones are keys where
    o_j is, whichever axis that is.
    """
    b_s = b_dot * scale
    if SCORE is not None:
        b_s = SCORE(b_s, b_i, b_j, i_head, p_params)
    if HAS_DENSE:
        p_pairs = p_dense + o_i.to(tl.int64) * s_dense + o_j
        m_pairs = (o_i < n) & (o_j < n)
        b_s += tl.load(p_pairs, mask=m_pairs, other=0.0).to(tl.float32)
    m_seen = o_j < n
    if HAS_WINDOW:
        back = b_i - b_j
        m_seen = m_seen & ((window_left < 0) | (back <= window_left))
        m_seen = m_seen & ((window_right < 0) | (back >= -window_right))
    return tl.where(m_seen, b_s * LOG2E, NO_SCORE)


@triton.jit
def keep_factor(seed, b_t, b_j, i_head, dropout_p):
    """1 / (1 - p) for the weights that dropout keeps, else 0; the same for the same place.

    Philox, counted by (key's place in its sequence, query's token, head): no state to carry, and
    the backward makes the same numbers from either side. b_t, b_j broadcast to the block.
    """
    zero = (b_t * 0 + b_j * 0).to(tl.uint32)
    bits, _, _, _ = tl.philox(
        seed, b_j.to(tl.uint32) + zero, b_t.to(tl.uint32) + zero, i_head.to(tl.uint32) + zero, zero
    )
    keep = tl.uint_to_uniform_float(bits) >= dropout_p
    return tl.where(keep, 1.0 / (1.0 - dropout_p), 0.0)
