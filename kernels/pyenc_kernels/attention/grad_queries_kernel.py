"""Attention backward: everything recomputed from q, k, v and the log-sum-exp, without atomics.

Dao, arXiv 2307.08691. With g the gradient of out, over the pairs that the forward met:
    p = 2^(s - lse), dp = g v^T, ds = p (dp - delta), delta = sum_d g out - grad_lse,
    dq = scale ds k, dk = scale ds^T q, dv = p^T g; the bias gets ds.
One kernel walks over keys for each tile of queries (dq, and the parameters of the bias by formula);
one over queries for each tile of keys (dk, dv: grad_keys_kernel.py). One more gathers ds where it
is by pair: of a table by what was looked up (grad_table_kernel.py), of a line by distance
(grad_line_kernel.py), of a dense bias for each tile of its own (grad_dense_kernel.py).

Shapes and names: as in forward_kernel.py.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ..slots import tile_of_program
from .score_tile import (
    LOG2E,
    columns_of,
    keep_factor,
    nearest_of,
    nearest_term,
    pair_scores,
    places_of,
    side_terms,
)
from .tiles import load_rows, met_tiles, phases, store_rows, total, unforeseen, window_tiles


@triton.jit
def rows_of_head(p_rows, i_head, n_heads, n_tokens):
    """Where a head's log-sum-exp and its delta begin in what `attention_delta` writes."""
    p_lse = p_rows + i_head.to(tl.int64) * n_tokens
    return p_lse, p_rows + (n_heads + i_head).to(tl.int64) * n_tokens


@triton.jit(do_not_specialize=["n_tokens"])
def attention_delta(
    p_out, p_grad_out, p_grad_lse, p_lse, p_rows, s_gt, s_gh, n_tokens, n_heads,
    HAS_GRAD_LSE: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_T: tl.constexpr,
    BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Program (blocks of T, H): rows (2, H, T), what a row of scores is given in the backward, side
    by side along a head: its log-sum-exp (T, H) in base 2, and delta."""
    o_t = tl.program_id(0).to(tl.int64) * BLOCK_T + tl.arange(0, BLOCK_T)
    i_head = tl.program_id(1)
    m_t = o_t < n_tokens
    o_th = o_t * n_heads + i_head
    p_lse_out, p_delta = rows_of_head(p_rows, i_head, n_heads, n_tokens)
    tl.store(p_lse_out + o_t, tl.load(p_lse + o_th, mask=m_t, other=0.0) * LOG2E, mask=m_t)
    o_d = tl.arange(0, BLOCK_D)
    begin = tl.program_id(0) * 0
    b_out = load_rows(
        p_out + i_head * HEAD_DIM, begin, o_t, n_tokens, o_d, n_heads * HEAD_DIM, HEAD_DIM, BLOCK_D
    )
    b_g = load_rows(
        p_grad_out + i_head.to(tl.int64) * s_gh, begin, o_t, n_tokens, o_d, s_gt, HEAD_DIM, BLOCK_D
    )
    b_delta = tl.sum(b_out.to(tl.float32) * b_g.to(tl.float32), 1)
    if HAS_GRAD_LSE:
        b_delta -= tl.load(p_grad_lse + o_th, mask=m_t, other=0.0)
    tl.store(p_delta + o_t, b_delta, mask=m_t)


@triton.jit
def weights(
    SCORE: tl.constexpr, AFFINE_FROM: tl.constexpr, b_columns, SIDE: tl.constexpr,
    PLAIN: tl.constexpr, LEVEL: tl.constexpr, b_dot, b_i, b_j, b_lse, o_i, o_j, n, nearest, scale,
    i_head, p_params, p_dense, s_dense, window_left, window_right, HAS_DENSE: tl.constexpr,
    HAS_WINDOW: tl.constexpr,
):  # fmt: skip
    """p = 2^(s - lse) of a block; everything a query's or a key's broadcasts to it.

    b_lse is in base 2, and so large in rows without a query that their p is 0. Of columns without a
    key p is 0 where SIDE is, elsewhere anything. b_columns: the keys' numbers, if they are known.
    """
    if SIDE == 0:
        b_s = pair_scores(
            SCORE, b_dot, b_i, b_j, scale, i_head, p_params, p_dense, s_dense, o_i, o_j, n,
            window_left, window_right, HAS_DENSE, HAS_WINDOW,
        )  # fmt: skip
        return tl.exp2(b_s - b_lse)
    elif PLAIN:
        return tl.exp2(b_dot * (scale * LOG2E) - b_lse)
    elif LEVEL:
        level = nearest_term(SCORE, AFFINE_FROM, SIDE < 0, i_head, p_params) * LOG2E
        return tl.exp2(b_dot * (scale * LOG2E) - (b_lse - level))
    else:
        b_row, b_column = side_terms(
            SCORE, AFFINE_FROM, b_columns is not None, SIDE < 0, b_i, b_j, nearest, i_head, p_params
        )
        if b_columns is not None:
            b_column = b_columns
        return tl.exp2(b_dot * (scale * LOG2E) + b_column - (b_lse - b_row))


@triton.jit
def load_lse(p_lse, begin, o_i, n):
    """The log-sum-exp of rows of a sequence in base 2; so large beyond it that weights are 0."""
    return tl.load(p_lse + begin + o_i, mask=o_i < n, other=float("inf"))


@triton.jit
def _walk_keys(
    b_dq, b_learned, b_off, b_mass, b_away, b_q, b_g, b_lse, b_delta, first, last, gap, after,
    p_k, p_v, p_positions, p_params, p_dense, s_kt, s_vt, s_dense,
    begin, n, o_i, b_i, i_head, scale, window_left, window_right, dropout_p, seed,
    SIDE: tl.constexpr, SCORE: tl.constexpr, STAGES: tl.constexpr, SLOPE: tl.constexpr,
    PARAMETER: tl.constexpr, LOOKUP: tl.constexpr, AFFINE_FROM: tl.constexpr,
    BY_DISTANCE: tl.constexpr, LEVEL: tl.constexpr, FLAT: tl.constexpr, PLAIN: tl.constexpr,
    N_LEARNED: tl.constexpr, N_LOOKED: tl.constexpr, BLOCK_L: tl.constexpr, BLOCK_C: tl.constexpr,
    CORRECTED: tl.constexpr, SETTLES: tl.constexpr, HAS_POSITIONS: tl.constexpr,
    HAS_DENSE: tl.constexpr, HAS_WINDOW: tl.constexpr, HAS_DROPOUT: tl.constexpr,
    HEAD_DIM: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Key tiles [first, last), as the forward's `_walk` has them: adds to dq, to the gradients
    of the bias's parameters from N_LOOKED on (BLOCK_L,), to what the rows of ds add up to, on a
    flat side beside a table to what those of p do, and, with CORRECTED, to
    sum_j p d score / d param (BLOCK_M, BLOCK_C) of those parameters.
    """
    o_d = tl.arange(0, BLOCK_D)
    o_l = tl.arange(0, BLOCK_L)
    o_c = N_LOOKED + tl.arange(0, BLOCK_C)
    b_columns = None
    if SIDE != 0 and BY_DISTANCE:
        b_columns = columns_of(SCORE, AFFINE_FROM, SIDE < 0, i_head, p_params, BLOCK_N)[None, :]
    for turn in tl.range(first, last, num_stages=STAGES):
        tile = turn
        if SIDE == 0 and AFFINE_FROM is not None:
            tile = tl.where(turn < gap, turn, turn - gap + after)
        o_j = tile * BLOCK_N + tl.arange(0, BLOCK_N)
        b_k = load_rows(p_k, begin, o_j, n, o_d, s_kt, HEAD_DIM, BLOCK_D)
        b_v = load_rows(p_v, begin, o_j, n, o_d, s_vt, HEAD_DIM, BLOCK_D)
        b_j = places_of(p_positions, begin, o_j, n, HAS_POSITIONS)
        nearest = nearest_of(b_j, tile, SIDE < 0, HAS_POSITIONS, BLOCK_N)
        b_dot = tl.dot(b_q, tl.trans(b_k), input_precision=PRECISION)  # (M, N)
        b_p = weights(
            SCORE, AFFINE_FROM, b_columns, SIDE, PLAIN, LEVEL, b_dot, b_i[:, None], b_j[None, :],
            b_lse[:, None], o_i[:, None], o_j[None, :], n, nearest, scale, i_head, p_params,
            p_dense, s_dense, window_left, window_right, HAS_DENSE, HAS_WINDOW,
        )  # fmt: skip
        b_dp = tl.dot(b_g, tl.trans(b_v), input_precision=PRECISION)
        if HAS_DROPOUT:
            b_dp = b_dp * keep_factor(seed, (begin + o_i)[:, None], o_j[None, :], i_head, dropout_p)
        b_ds = b_p * (b_dp - b_delta[:, None])
        if CORRECTED or SETTLES:
            b_off += tl.sum(b_ds, 1)
        if LOOKUP is not None and FLAT and SIDE != 0:
            b_mass += tl.sum(b_p, 1)
        if PARAMETER is not None:
            if FLAT and SIDE != 0:
                b_whole = total(b_ds)
                if SIDE < 0:
                    i_near = nearest + AFFINE_FROM
                else:
                    i_near = nearest - AFFINE_FROM
                for index in tl.static_range(N_LOOKED, N_LEARNED):
                    slope = PARAMETER(nearest * 0, i_near, nearest, i_head, p_params, index)
                    b_learned += tl.where(o_l == index, b_whole * slope, 0.0)
                    if CORRECTED:
                        b_row = tl.sum(b_p, 1) * slope
                        b_away += tl.where(o_c[None, :] == index, b_row[:, None], 0.0)
            else:
                for index in tl.static_range(N_LOOKED, N_LEARNED):
                    b_slope = PARAMETER(
                        b_dot * scale, b_i[:, None], b_j[None, :], i_head, p_params, index
                    )
                    b_part = total(b_ds * b_slope)
                    b_learned += tl.where(o_l == index, b_part, 0.0)
                    if CORRECTED:
                        b_row = tl.sum(b_p * b_slope, 1)
                        b_away += tl.where(o_c[None, :] == index, b_row[:, None], 0.0)
        if SLOPE is not None:
            b_ds = b_ds * SLOPE(b_dot * scale, b_i[:, None], b_j[None, :], i_head, p_params)
        b_dq = tl.dot(b_ds.to(b_k.dtype), b_k, b_dq, input_precision=PRECISION)
    return b_dq, b_learned, b_off, b_mass, b_away


@triton.jit
def _far(
    o_l, number, SIDE: tl.constexpr, LOOKUP: tl.constexpr, AFFINE_FROM: tl.constexpr, i_head,
    p_params,
):  # fmt: skip
    """(BLOCK_L,): a number where that of a table is which a flat side is given, else 0."""
    at = i_head * 0.0
    return tl.where(o_l == LOOKUP(at - SIDE * AFFINE_FROM, at, i_head, p_params), number, 0.0)


@triton.jit(
    do_not_specialize=["n_tokens", "n_sequences", "n_slots", "window_left", "window_right", "seed"]
)
def attention_grad_queries(
    p_q, p_k, p_v, p_grad_out, p_rows, p_grad_lse, p_dq, p_learned,
    p_cu, p_positions, p_params, p_dense, p_ranges, p_order,
    s_qt, s_qh, s_kt, s_kh, s_vt, s_vh, s_gt, s_gh, s_params, s_dense_h, s_dense,
    n_tokens, n_sequences, n_slots, n_heads, scale, window_left, window_right, dropout_p, seed,
    SCORE: tl.constexpr, STAGES: tl.constexpr, SLOPE: tl.constexpr, PARAMETER: tl.constexpr,
    LOOKUP: tl.constexpr, AFFINE_FROM: tl.constexpr, BY_DISTANCE: tl.constexpr,
    LEVEL: tl.constexpr, FLAT: tl.constexpr, PLAIN: tl.constexpr, N_LEARNED: tl.constexpr,
    N_LOOKED: tl.constexpr, BLOCK_L: tl.constexpr, BLOCK_C: tl.constexpr, CORRECTED: tl.constexpr,
    SETTLES: tl.constexpr, HAS_GRAD_LSE: tl.constexpr, HAS_POSITIONS: tl.constexpr,
    HAS_DENSE: tl.constexpr, HAS_WINDOW: tl.constexpr, HAS_DROPOUT: tl.constexpr,
    HAS_RANGES: tl.constexpr, HAS_ORDER: tl.constexpr, HEAD_DIM: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Program (H S, tiles of a slot): dq (T, H, D) of a tile of queries, and its share of the
    gradients of the bias's parameters, p_learned (H, S, tiles of a slot, BLOCK_L), but for what
    `attention_grad_table` adds. SETTLES: p_rows gets the delta with which rows of ds add up to
    what they should."""
    FAR: tl.constexpr = LOOKUP is not None and FLAT and AFFINE_FROM is not None
    i_head, i_slot, i_number, begin, n, i_first = tile_of_program(
        p_cu, p_order, n_sequences, n_slots, HAS_ORDER, BLOCK_M
    )
    i_last = tl.minimum(i_first + BLOCK_M, n) - 1
    o_l = tl.arange(0, BLOCK_L)
    b_learned = tl.zeros([BLOCK_L], tl.float32)
    if i_first < n:
        o_i = i_first + tl.arange(0, BLOCK_M)
        o_d = tl.arange(0, BLOCK_D)
        b_q = load_rows(
            p_q + i_head.to(tl.int64) * s_qh, begin, o_i, n, o_d, s_qt, HEAD_DIM, BLOCK_D
        )
        b_g = load_rows(
            p_grad_out + i_head.to(tl.int64) * s_gh, begin, o_i, n, o_d, s_gt, HEAD_DIM, BLOCK_D
        )
        b_i = places_of(p_positions, begin, o_i, n, HAS_POSITIONS)
        p_lse, p_delta = rows_of_head(p_rows, i_head, n_heads, n_tokens)
        b_lse = load_lse(p_lse, begin, o_i, n)
        b_delta = tl.load(p_delta + begin + o_i, mask=o_i < n, other=0.0)
        p_k += i_head.to(tl.int64) * s_kh
        p_v += i_head.to(tl.int64) * s_vh
        p_params += i_head * s_params
        p_dense += i_head.to(tl.int64) * s_dense_h
        first, last = window_tiles(
            i_first, i_last, n, window_left, window_right, HAS_WINDOW, BLOCK_N
        )
        if HAS_RANGES:
            first, last = met_tiles(p_ranges, i_head * n_slots + i_slot, first, last, BLOCK_N)
        else:
            last = unforeseen(last, p_cu, PLAIN)
        a, b, c = phases(
            first, last, i_first, i_first + BLOCK_M - 1, n, AFFINE_FROM, PLAIN, BLOCK_N
        )
        b_dq = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
        b_none = tl.zeros([BLOCK_M], tl.float32)
        b_away = tl.zeros([BLOCK_M, BLOCK_C], tl.float32)
        b_off, b_left, b_right = b_none, b_none, b_none
        if PLAIN or AFFINE_FROM is not None:
            b_dq, b_learned, b_off, b_left, b_away = _walk_keys(
                b_dq, b_learned, b_off, b_none, b_away, b_q, b_g, b_lse, b_delta, first, a, a, a,
                p_k, p_v, p_positions, p_params, p_dense, s_kt, s_vt, s_dense,
                begin, n, o_i, b_i, i_head, scale, window_left, window_right, dropout_p, seed,
                -1, SCORE, None, SLOPE, PARAMETER, LOOKUP, AFFINE_FROM, BY_DISTANCE, LEVEL, FLAT,
                PLAIN, N_LEARNED, N_LOOKED, BLOCK_L, BLOCK_C, CORRECTED, SETTLES, HAS_POSITIONS,
                HAS_DENSE, HAS_WINDOW, HAS_DROPOUT, HEAD_DIM, BLOCK_N, BLOCK_D, PRECISION,
            )  # fmt: skip
        if FAR:
            left = tl.sum(b_off, 0)
            b_learned += _far(o_l, left, -1, LOOKUP, AFFINE_FROM, i_head, p_params)
        if AFFINE_FROM is not None:
            b_dq, b_learned, b_off, b_right, b_away = _walk_keys(
                b_dq, b_learned, b_off, b_none, b_away, b_q, b_g, b_lse, b_delta, b, c, c, c,
                p_k, p_v, p_positions, p_params, p_dense, s_kt, s_vt, s_dense,
                begin, n, o_i, b_i, i_head, scale, window_left, window_right, dropout_p, seed,
                1, SCORE, None, SLOPE, PARAMETER, LOOKUP, AFFINE_FROM, BY_DISTANCE, LEVEL, FLAT,
                False, N_LEARNED, N_LOOKED, BLOCK_L, BLOCK_C, CORRECTED, SETTLES, HAS_POSITIONS,
                HAS_DENSE, HAS_WINDOW, HAS_DROPOUT, HEAD_DIM, BLOCK_N, BLOCK_D, PRECISION,
            )  # fmt: skip
        if FAR:
            right = tl.sum(b_off, 0) - left
            b_learned += _far(o_l, right, 1, LOOKUP, AFFINE_FROM, i_head, p_params)
        b_dq, b_learned, b_off, _, b_away = _walk_keys(
            b_dq, b_learned, b_off, b_none, b_away, b_q, b_g, b_lse, b_delta,
            a, b + last - c, b, c,
            p_k, p_v, p_positions, p_params, p_dense, s_kt, s_vt, s_dense,
            begin, n, o_i, b_i, i_head, scale, window_left, window_right, dropout_p, seed,
            0, SCORE, STAGES, SLOPE, PARAMETER, LOOKUP, AFFINE_FROM, BY_DISTANCE, LEVEL, FLAT,
            False, N_LEARNED, N_LOOKED, BLOCK_L, BLOCK_C, CORRECTED, SETTLES, HAS_POSITIONS,
            HAS_DENSE, HAS_WINDOW, HAS_DROPOUT, HEAD_DIM, BLOCK_N, BLOCK_D, PRECISION,
        )  # fmt: skip
        store_rows(
            p_dq + i_head * HEAD_DIM, b_dq * scale, begin, o_i, n, o_d, n_heads * HEAD_DIM,
            HEAD_DIM, BLOCK_D,
        )  # fmt: skip
        # delta comes from a rounded output, and is off by as much as the sum of ds is off what it
        # should be, the gradient of the log-sum-exp. In ds |i - j| that grows with the distance, in
        # a table's number it adds up over pairs whose ds cancel; ds is off by so much times p, and
        # so it is taken back, here or by who takes the settled delta.
        if CORRECTED or SETTLES:
            b_back = -b_off
            if HAS_GRAD_LSE:
                o_ih = (begin + o_i) * n_heads + i_head
                b_back += tl.load(p_grad_lse + o_ih, mask=o_i < n, other=0.0)
        if SETTLES:
            # Made anew: where the address is kept, this kernel spills on sm_86.
            _, p_delta = rows_of_head(p_rows, i_head, n_heads, n_tokens)
            p_settled = p_delta + begin + i_first + tl.arange(0, BLOCK_M)
            tl.store(p_settled, b_delta - b_back, mask=o_i < n)
        if CORRECTED:
            b_taken = tl.sum(b_back[:, None] * b_away, 0)
            if N_LOOKED == 0:
                b_learned += b_taken
            else:
                o_c = N_LOOKED + tl.arange(0, BLOCK_C)
                b_at = o_l[:, None] == o_c[None, :]
                b_learned += tl.sum(tl.where(b_at, b_taken[None, :], 0.0), 1)
        if FAR:
            left = tl.sum(b_back * b_left, 0)
            right = tl.sum(b_back * b_right, 0)
            b_learned += _far(o_l, left, -1, LOOKUP, AFFINE_FROM, i_head, p_params)
            b_learned += _far(o_l, right, 1, LOOKUP, AFFINE_FROM, i_head, p_params)
    if N_LEARNED > 0:
        tl.store(p_learned + i_number.to(tl.int64) * BLOCK_L + o_l, b_learned)
