"""Attention forward: one program a tile of queries of one head, an online softmax over its keys.

Dao, arXiv 2307.08691, over packed sequences; scores in base 2. What is subtracted before the power
is a row's shift. The running maximum is one; it costs a comparison and two products for every score
and every number of the output in each tile, and what was added up waits for it. With FIXED_SHIFT it
runs through the first tiles alone, those around the diagonal (without a bias a sequence's last),
and stands still through all others, whatever their scores: floats keep their digits however large a
weight is. A row that outgrows them has a sum or an output that is no number; its program then takes
all keys once more, with the running maximum. Where that makes the largest weight exactly 1, a
standing shift makes it anything: so sums are of weights as they are rounded (`cut_to`), which is
right for the output and no log-sum-exp. Who wants that one, as a backward does, has the running
maximum.

Shapes: T packed tokens, B sequences, H heads, D head dim, S slots (slots.py).
Names: p_ pointer, b_ block value, o_ offsets, m_ mask, i_ program index, n_ count, s_ stride.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ..slots import tile_of_program
from .score_tile import (
    LN2,
    LOG2E,
    NO_SCORE,
    column_factors,
    columns_of,
    keep_factor,
    nearest_of,
    nearest_term,
    pair_scores,
    places_of,
    side_terms,
)
from .tiles import load_rows, met_tiles, phases, store_rows, unforeseen, window_tiles


@triton.jit
def cut_to(b_p, dtype: tl.constexpr):
    """Weights in float32 without the digits that a dtype has not: their sum is then of what their
    product with the values has, and where one weight is most of a row its rounding is no error of
    the row. Cut and not rounded, which takes one instruction; what all lose cancels."""
    if dtype == tl.bfloat16:
        return (b_p.to(tl.uint32, bitcast=True) & 0xFFFF0000).to(tl.float32, bitcast=True)
    elif dtype == tl.float16:
        return (b_p.to(tl.uint32, bitcast=True) & 0xFFFFE000).to(tl.float32, bitcast=True)
    else:
        return b_p


@triton.jit
def _walk(
    b_acc, b_top, b_sum, b_q, first, last, gap, after,
    p_k, p_v, p_positions, p_params, p_dense, s_kt, s_vt, s_dense,
    begin, n, no_row, o_i, b_i, i_head, scale, window_left, window_right, dropout_p, seed,
    SIDE: tl.constexpr, SCORE: tl.constexpr, STAGES: tl.constexpr, AFFINE_FROM: tl.constexpr,
    BY_DISTANCE: tl.constexpr, LEVEL: tl.constexpr, PLAIN: tl.constexpr,
    FIXED_SHIFT: tl.constexpr, COLUMNS_IN_PRODUCT: tl.constexpr, HAS_POSITIONS: tl.constexpr,
    HAS_DENSE: tl.constexpr, HAS_WINDOW: tl.constexpr, HAS_DROPOUT: tl.constexpr,
    HEAD_DIM: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Key tiles [first, last) on one side of the queries: -1 left, 1 right, 0 any.

    On a side they are full. Those from `gap` on stand for those from `after` on. FIXED_SHIFT: on a
    side the maximum stays what it is.
    """
    o_d = tl.arange(0, BLOCK_D)
    # Whether a tile's scores are its products, scaled, but for a number a query. The maximum is
    # then taken before scaling: all three are for scales that keep the order.
    IN_ORDER: tl.constexpr = PLAIN or LEVEL or COLUMNS_IN_PRODUCT
    if SIDE != 0 and not IN_ORDER and BY_DISTANCE:
        b_columns = columns_of(SCORE, AFFINE_FROM, SIDE < 0, i_head, p_params, BLOCK_N)
    if SIDE != 0 and LEVEL:
        level = nearest_term(SCORE, AFFINE_FROM, SIDE < 0, i_head, p_params) * LOG2E
    if SIDE != 0 and COLUMNS_IN_PRODUCT:
        b_columns = columns_of(SCORE, AFFINE_FROM, SIDE < 0, i_head, p_params, BLOCK_N)
        b_ones, b_parts = column_factors(
            p_k, no_row, b_columns / (scale * LOG2E), b_q.shape[0], BLOCK_N
        )
    for turn in tl.range(first, last, num_stages=STAGES):
        tile = turn
        if SIDE == 0 and AFFINE_FROM is not None:
            tile = tl.where(turn < gap, turn, turn - gap + after)
        o_j = tile * BLOCK_N + tl.arange(0, BLOCK_N)
        b_k = load_rows(p_k, begin, o_j, n, o_d, s_kt, HEAD_DIM, BLOCK_D)
        b_dot = tl.dot(b_q, tl.trans(b_k), input_precision=PRECISION)  # (M, N)
        if SIDE == 0:
            b_j = places_of(p_positions, begin, o_j, n, HAS_POSITIONS)
            b_s = pair_scores(
                SCORE, b_dot, b_i[:, None], b_j[None, :], scale, i_head, p_params, p_dense, s_dense,
                o_i[:, None], o_j[None, :], n, window_left, window_right, HAS_DENSE, HAS_WINDOW,
            )  # fmt: skip
            b_higher = tl.maximum(b_top, tl.max(b_s, 1))
            # A row that has met hidden keys alone has no maximum yet.
            b_shift = tl.where(b_higher == NO_SCORE, 0.0, b_higher)
            b_p = tl.exp2(b_s - b_shift[:, None])
        else:
            b_row = tl.zeros_like(b_top)
            if LEVEL:
                b_row += level
            elif not PLAIN:
                b_j = places_of(p_positions, begin, o_j, n, HAS_POSITIONS)
                nearest = nearest_of(b_j, tile, SIDE < 0, HAS_POSITIONS, BLOCK_N)
                b_row, b_column = side_terms(
                    SCORE, AFFINE_FROM, BY_DISTANCE, SIDE < 0, b_i, b_j, nearest, i_head, p_params
                )
            if IN_ORDER:
                if COLUMNS_IN_PRODUCT:
                    b_dot = tl.dot(b_ones, b_parts, b_dot)
                b_s = b_dot * (scale * LOG2E)
                b_best = tl.max(b_dot, 1) * (scale * LOG2E)
            else:
                if BY_DISTANCE:
                    b_column = b_columns
                b_s = b_dot * (scale * LOG2E) + b_column[None, :]
                b_best = tl.max(b_s, 1)
            b_higher = tl.maximum(b_top, b_best + b_row)
            b_shift = b_top if FIXED_SHIFT else b_higher
            b_p = tl.exp2(b_s - (b_shift - b_row)[:, None])
        b_v = load_rows(p_v, begin, o_j, n, o_d, s_vt, HEAD_DIM, BLOCK_D)
        if SIDE != 0 and FIXED_SHIFT:
            b_p = cut_to(b_p, b_v.dtype)
            b_sum += tl.sum(b_p, 1)
        else:
            b_shrink = tl.exp2(b_top - b_shift)
            b_sum = b_sum * b_shrink + tl.sum(b_p, 1)
            b_acc = b_acc * b_shrink[:, None]
            b_top = b_higher
        if HAS_DROPOUT:
            b_p = b_p * keep_factor(seed, (begin + o_i)[:, None], o_j[None, :], i_head, dropout_p)
        b_acc = tl.dot(b_p.to(b_v.dtype), b_v, b_acc, input_precision=PRECISION)
    return b_acc, b_top, b_sum


@triton.jit(do_not_specialize=["n_sequences", "n_slots", "window_left", "window_right", "seed"])
def attention_forward(
    p_q, p_k, p_v, p_out, p_lse, p_cu, p_positions, p_params, p_dense, p_ranges, p_order,
    s_qt, s_qh, s_kt, s_kh, s_vt, s_vh, n_group, s_params, s_dense_h, s_dense,
    n_sequences, n_slots, n_heads, scale, window_left, window_right, dropout_p, seed,
    SCORE: tl.constexpr, STAGES: tl.constexpr, AFFINE_FROM: tl.constexpr,
    BY_DISTANCE: tl.constexpr, LEVEL: tl.constexpr, PLAIN: tl.constexpr,
    FIXED_SHIFT: tl.constexpr, COLUMNS_IN_PRODUCT: tl.constexpr, HAS_POSITIONS: tl.constexpr,
    HAS_DENSE: tl.constexpr, HAS_WINDOW: tl.constexpr, HAS_DROPOUT: tl.constexpr,
    HAS_RANGES: tl.constexpr, HAS_ORDER: tl.constexpr, HAS_LSE: tl.constexpr,
    HEAD_DIM: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Program (H S, tiles of a slot): out (T, H, D) of a tile of queries, its log-sum-exp (T, H),
    which is none of a fixed shift's.

    p_ranges (H, S, 2): the grains of keys [first, last) that each grain of queries meets. n_group:
    heads of queries that share a head of keys.
    """
    i_head, i_slot, _, begin, n, i_first = tile_of_program(
        p_cu, p_order, n_sequences, n_slots, HAS_ORDER, BLOCK_M
    )
    i_last = tl.minimum(i_first + BLOCK_M, n) - 1
    if i_first < n:
        o_i = i_first + tl.arange(0, BLOCK_M)
        o_d = tl.arange(0, BLOCK_D)
        b_q = load_rows(
            p_q + i_head.to(tl.int64) * s_qh, begin, o_i, n, o_d, s_qt, HEAD_DIM, BLOCK_D
        )
        b_i = places_of(p_positions, begin, o_i, n, HAS_POSITIONS)
        i_shared = (i_head // n_group).to(tl.int64)
        p_k += i_shared * s_kh
        p_v += i_shared * s_vh
        p_params += i_head * s_params
        p_dense += i_head.to(tl.int64) * s_dense_h
        first, last = window_tiles(
            i_first, i_last, n, window_left, window_right, HAS_WINDOW, BLOCK_N
        )
        if HAS_RANGES:
            first, last = met_tiles(p_ranges, i_head * n_slots + i_slot, first, last, BLOCK_N)
        else:
            last = unforeseen(last, p_cu, PLAIN)
        # Without a bias a fixed shift is of a quarter of a tile's keys at the least; in float16,
        # where weights have less room, of a whole one.
        HALF: tl.constexpr = p_v.dtype.element_ty == tl.float16
        LEAST: tl.constexpr = (BLOCK_N if HALF else BLOCK_N // 4) if FIXED_SHIFT else 0
        a, b, c = phases(
            first, last, i_first, i_first + BLOCK_M - 1, n, AFFINE_FROM, PLAIN, BLOCK_N, LEAST
        )
        no_row = 0
        if COLUMNS_IN_PRODUCT:
            no_row = tl.load(p_cu).to(tl.int32)
        b_acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
        b_top = tl.full([BLOCK_M], NO_SCORE, tl.float32)
        b_sum = tl.zeros([BLOCK_M], tl.float32)
        # The middle first: with a bias that falls off the largest scores are there, and the running
        # maximum moves little afterwards.
        b_acc, b_top, b_sum = _walk(
            b_acc, b_top, b_sum, b_q, a, b + last - c, b, c,
            p_k, p_v, p_positions, p_params, p_dense, s_kt, s_vt, s_dense, begin, n, no_row,
            o_i, b_i, i_head, scale, window_left, window_right, dropout_p, seed,
            0, SCORE, STAGES, AFFINE_FROM, BY_DISTANCE, LEVEL, False, False,
            COLUMNS_IN_PRODUCT, HAS_POSITIONS, HAS_DENSE, HAS_WINDOW, HAS_DROPOUT, HEAD_DIM,
            BLOCK_N, BLOCK_D, PRECISION,
        )  # fmt: skip
        if PLAIN or AFFINE_FROM is not None:
            b_acc, b_top, b_sum = _walk(
                b_acc, b_top, b_sum, b_q, first, a, a, a,
                p_k, p_v, p_positions, p_params, p_dense, s_kt, s_vt, s_dense, begin, n, no_row,
                o_i, b_i, i_head, scale, window_left, window_right, dropout_p, seed,
                -1, SCORE, None, AFFINE_FROM, BY_DISTANCE, LEVEL, PLAIN, FIXED_SHIFT,
                COLUMNS_IN_PRODUCT, HAS_POSITIONS, HAS_DENSE, HAS_WINDOW, HAS_DROPOUT, HEAD_DIM,
                BLOCK_N, BLOCK_D, PRECISION,
            )  # fmt: skip
        if AFFINE_FROM is not None:
            b_acc, b_top, b_sum = _walk(
                b_acc, b_top, b_sum, b_q, b, c, c, c,
                p_k, p_v, p_positions, p_params, p_dense, s_kt, s_vt, s_dense, begin, n, no_row,
                o_i, b_i, i_head, scale, window_left, window_right, dropout_p, seed,
                1, SCORE, None, AFFINE_FROM, BY_DISTANCE, LEVEL, False, FIXED_SHIFT,
                COLUMNS_IN_PRODUCT, HAS_POSITIONS, HAS_DENSE, HAS_WINDOW, HAS_DROPOUT, HEAD_DIM,
                BLOCK_N, BLOCK_D, PRECISION,
            )  # fmt: skip
        if FIXED_SHIFT:
            # Neither what overflowed nor what is no number is below infinity. Of each number, and
            # at once, as `total` says.
            m_held = b_sum[:, None] + tl.abs(b_acc) < float("inf")
            if tl.min(m_held.to(tl.int32)) == 0:
                b_acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
                b_top = tl.full([BLOCK_M], NO_SCORE, tl.float32)
                b_sum = tl.zeros([BLOCK_M], tl.float32)
                b_acc, b_top, b_sum = _walk(
                    b_acc, b_top, b_sum, b_q, first, last, last, last,
                    p_k, p_v, p_positions, p_params, p_dense, s_kt, s_vt, s_dense, begin, n, no_row,
                    o_i, b_i, i_head, scale, window_left, window_right, dropout_p, seed,
                    0, SCORE, STAGES, AFFINE_FROM, BY_DISTANCE, LEVEL, False, False,
                    COLUMNS_IN_PRODUCT, HAS_POSITIONS, HAS_DENSE, HAS_WINDOW, HAS_DROPOUT, HEAD_DIM,
                    BLOCK_N, BLOCK_D, PRECISION,
                )  # fmt: skip
        p_out += i_head * HEAD_DIM
        store_rows(
            p_out, b_acc / b_sum[:, None], begin, o_i, n, o_d, n_heads * HEAD_DIM, HEAD_DIM, BLOCK_D
        )
        if HAS_LSE:
            b_lse = (b_top + tl.log2(b_sum)) * LN2
            tl.store(p_lse + (begin + o_i) * n_heads + i_head, b_lse, mask=o_i < n)
