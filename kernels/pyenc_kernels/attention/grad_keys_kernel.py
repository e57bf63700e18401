"""Gradients of keys and values: one program a tile of keys of one head, a loop over its queries.

Shapes and names: as in forward_kernel.py; formulas: grad_queries_kernel.py.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ..slots import GRAIN, tile_of_program
from .grad_queries_kernel import load_lse, rows_of_head, weights
from .score_tile import keep_factor, places_of
from .tiles import load_rows, met_tiles, phases, store_rows, unforeseen, window_tiles


@triton.jit
def _walk_queries(
    b_dk, b_dv, b_k, b_v, first, last,
    p_q, p_grad_out, p_lse, p_delta, p_positions, p_params, p_dense, p_ranges, s_qt, s_gt, s_dense,
    begin, n, o_j, b_j, nearest_left, nearest_right, i_grain, i_head, scale,
    window_left, window_right, dropout_p, seed,
    SIDE: tl.constexpr, SCORE: tl.constexpr, STAGES: tl.constexpr, SLOPE: tl.constexpr,
    AFFINE_FROM: tl.constexpr, LEVEL: tl.constexpr, PLAIN: tl.constexpr,
    HAS_POSITIONS: tl.constexpr, HAS_DENSE: tl.constexpr, HAS_WINDOW: tl.constexpr,
    HAS_DROPOUT: tl.constexpr, HAS_RANGES: tl.constexpr, HEAD_DIM: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Query tiles [first, last); SIDE is that of the keys as the queries see them."""
    o_d = tl.arange(0, BLOCK_D)
    for tile in tl.range(first, last, num_stages=STAGES):
        o_i = tile * BLOCK_M + tl.arange(0, BLOCK_M)
        b_q = load_rows(p_q, begin, o_i, n, o_d, s_qt, HEAD_DIM, BLOCK_D)
        b_g = load_rows(p_grad_out, begin, o_i, n, o_d, s_gt, HEAD_DIM, BLOCK_D)
        b_i = places_of(p_positions, begin, o_i, n, HAS_POSITIONS)
        b_lse = load_lse(p_lse, begin, o_i, n)
        b_delta = tl.load(p_delta + begin + o_i, mask=o_i < n, other=0.0)
        if HAS_RANGES:
            # Whether these queries met these keys at all.
            p_range = p_ranges + tile * BLOCK_M // GRAIN * 2
            met = (tl.load(p_range) <= i_grain) & (i_grain < tl.load(p_range + 1))
            b_lse = tl.where(met, b_lse, float("inf"))
        if SIDE < 0:
            nearest = nearest_left
        else:
            nearest = nearest_right
        b_dot = tl.dot(b_k, tl.trans(b_q), input_precision=PRECISION)  # (N, M)
        b_p = weights(
            SCORE, AFFINE_FROM, None, SIDE, PLAIN, LEVEL, b_dot, b_i[None, :], b_j[:, None],
            b_lse[None, :], o_i[None, :], o_j[:, None], n, nearest, scale, i_head, p_params,
            p_dense, s_dense, window_left, window_right, HAS_DENSE, HAS_WINDOW,
        )  # fmt: skip
        b_dp = tl.dot(b_v, tl.trans(b_g), input_precision=PRECISION)
        b_given = b_p
        if HAS_DROPOUT:
            b_keep = keep_factor(seed, (begin + o_i)[None, :], o_j[:, None], i_head, dropout_p)
            b_dp = b_dp * b_keep
            b_given = b_p * b_keep
        b_dv = tl.dot(b_given.to(b_g.dtype), b_g, b_dv, input_precision=PRECISION)
        b_ds = b_p * (b_dp - b_delta[None, :])
        if SLOPE is not None:
            b_ds = b_ds * SLOPE(b_dot * scale, b_i[None, :], b_j[:, None], i_head, p_params)
        b_dk = tl.dot(b_ds.to(b_q.dtype), b_q, b_dk, input_precision=PRECISION)
    return b_dk, b_dv


@triton.jit(
    do_not_specialize=["n_tokens", "n_sequences", "n_slots", "window_left", "window_right", "seed"]
)
def attention_grad_keys(
    p_q, p_k, p_v, p_grad_out, p_rows, p_dk, p_dv,
    p_cu, p_positions, p_params, p_dense, p_ranges, p_hulls, p_order,
    s_qt, s_qh, s_kt, s_kh, s_vt, s_vh, s_gt, s_gh, s_params, s_dense_h, s_dense,
    n_tokens, n_sequences, n_slots, n_heads, scale, window_left, window_right, dropout_p, seed,
    SCORE: tl.constexpr, STAGES: tl.constexpr, SLOPE: tl.constexpr,
    AFFINE_FROM: tl.constexpr, BY_DISTANCE: tl.constexpr, LEVEL: tl.constexpr,
    PLAIN: tl.constexpr, HAS_POSITIONS: tl.constexpr, HAS_DENSE: tl.constexpr,
    HAS_WINDOW: tl.constexpr, HAS_DROPOUT: tl.constexpr, HAS_RANGES: tl.constexpr,
    HAS_ORDER: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Program (H S, tiles of a slot): dk, dv (T, H, D) of a tile of keys.

    p_hulls (H, S, 2): all grains of queries that met a grain of keys lie in [first, last).
    """
    i_head, i_slot, _, begin, n, j_first = tile_of_program(
        p_cu, p_order, n_sequences, n_slots, HAS_ORDER, BLOCK_N
    )
    i_grain = j_first // GRAIN
    j_last = tl.minimum(j_first + BLOCK_N, n) - 1
    if j_first < n:
        o_j = j_first + tl.arange(0, BLOCK_N)
        o_d = tl.arange(0, BLOCK_D)
        b_k = load_rows(
            p_k + i_head.to(tl.int64) * s_kh, begin, o_j, n, o_d, s_kt, HEAD_DIM, BLOCK_D
        )
        b_v = load_rows(
            p_v + i_head.to(tl.int64) * s_vh, begin, o_j, n, o_d, s_vt, HEAD_DIM, BLOCK_D
        )
        b_j = places_of(p_positions, begin, o_j, n, HAS_POSITIONS)
        p_q += i_head.to(tl.int64) * s_qh
        p_grad_out += i_head.to(tl.int64) * s_gh
        p_lse, p_delta = rows_of_head(p_rows, i_head, n_heads, n_tokens)
        p_params += i_head * s_params
        p_dense += i_head.to(tl.int64) * s_dense_h
        # Seen from a key, the queries behind it are those that look ahead.
        first, last = window_tiles(
            j_first, j_last, n, window_right, window_left, HAS_WINDOW, BLOCK_M
        )
        if HAS_RANGES:
            i_own = i_head * n_slots + i_slot
            first, last = met_tiles(p_hulls, i_own, first, last, BLOCK_M)
            p_ranges += (i_own - i_grain).to(tl.int64) * 2  # of the sequence's first grain
        else:
            last = unforeseen(last, p_cu, PLAIN)
        a, b, _ = phases(
            first, last, j_first, j_first + BLOCK_N - 1, n, AFFINE_FROM, PLAIN, BLOCK_M
        )
        nearest_left = tl.max(b_j, 0)
        nearest_right = tl.min(b_j, 0)
        b_dk = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
        b_dv = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
        b_dk, b_dv = _walk_queries(
            b_dk, b_dv, b_k, b_v, a, b,
            p_q, p_grad_out, p_lse, p_delta, p_positions, p_params, p_dense, p_ranges,
            s_qt, s_gt, s_dense, begin, n, o_j, b_j, nearest_left, nearest_right, i_grain, i_head,
            scale, window_left, window_right, dropout_p, seed,
            0, SCORE, STAGES, SLOPE, AFFINE_FROM, LEVEL, False, HAS_POSITIONS, HAS_DENSE,
            HAS_WINDOW, HAS_DROPOUT, HAS_RANGES, HEAD_DIM, BLOCK_M, BLOCK_D, PRECISION,
        )  # fmt: skip
        if PLAIN or AFFINE_FROM is not None:
            b_dk, b_dv = _walk_queries(
                b_dk, b_dv, b_k, b_v, first, a,
                p_q, p_grad_out, p_lse, p_delta, p_positions, p_params, p_dense, p_ranges,
                s_qt, s_gt, s_dense, begin, n, o_j, b_j, nearest_left, nearest_right, i_grain,
                i_head, scale, window_left, window_right, dropout_p, seed,
                1, SCORE, None, SLOPE, AFFINE_FROM, LEVEL, PLAIN, HAS_POSITIONS, HAS_DENSE,
                HAS_WINDOW, HAS_DROPOUT, HAS_RANGES, HEAD_DIM, BLOCK_M, BLOCK_D, PRECISION,
            )  # fmt: skip
        if AFFINE_FROM is not None:
            b_dk, b_dv = _walk_queries(
                b_dk, b_dv, b_k, b_v, b, last,
                p_q, p_grad_out, p_lse, p_delta, p_positions, p_params, p_dense, p_ranges,
                s_qt, s_gt, s_dense, begin, n, o_j, b_j, nearest_left, nearest_right, i_grain,
                i_head, scale, window_left, window_right, dropout_p, seed,
                -1, SCORE, None, SLOPE, AFFINE_FROM, LEVEL, False, HAS_POSITIONS, HAS_DENSE,
                HAS_WINDOW, HAS_DROPOUT, HAS_RANGES, HEAD_DIM, BLOCK_M, BLOCK_D, PRECISION,
            )  # fmt: skip
        s_out = n_heads * HEAD_DIM
        p_dk += i_head * HEAD_DIM
        p_dv += i_head * HEAD_DIM
        store_rows(p_dk, b_dk * scale, begin, o_j, n, o_d, s_out, HEAD_DIM, BLOCK_D)
        store_rows(p_dv, b_dv, begin, o_j, n, o_d, s_out, HEAD_DIM, BLOCK_D)
