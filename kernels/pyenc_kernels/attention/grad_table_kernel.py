"""Gradient of a table that is looked up for each pair: ds summed by the number a pair was given.

A walk over the keys of its own, once `attention_grad_queries` has settled delta: to take back
afterwards what delta was off by, a row would have to keep a sum for each number.

Shapes and names: as in forward_kernel.py.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ..slots import tile_of_program
from .grad_queries_kernel import load_lse, rows_of_head
from .score_tile import places_of
from .tile_gradient import pair_gradient
from .tiles import load_rows, met_tiles, phases, total, unforeseen, window_tiles


@triton.jit(
    do_not_specialize=["n_tokens", "n_sequences", "n_slots", "window_left", "window_right", "seed"]
)
def attention_grad_table(
    p_q, p_k, p_v, p_grad_out, p_rows, p_learned,
    p_cu, p_positions, p_params, p_dense, p_ranges, p_order,
    s_qt, s_qh, s_kt, s_kh, s_vt, s_vh, s_gt, s_gh, s_params, s_dense_h, s_dense,
    n_tokens, n_sequences, n_slots, n_heads, scale, window_left, window_right, dropout_p, seed,
    SCORE: tl.constexpr, STAGES: tl.constexpr, LOOKUP: tl.constexpr, FLAT_FROM: tl.constexpr,
    BLOCK_L: tl.constexpr, HAS_POSITIONS: tl.constexpr, HAS_DENSE: tl.constexpr,
    HAS_WINDOW: tl.constexpr, HAS_DROPOUT: tl.constexpr,
    HAS_RANGES: tl.constexpr, HAS_ORDER: tl.constexpr, HEAD_DIM: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Program (H S, tiles of a slot): adds a tile's ds to its share, p_learned (H, S, tiles of a
    slot, BLOCK_L), of those keys that `attention_grad_queries` did not take for flat: with its
    tiles, and with delta as it left it."""
    i_head, i_slot, i_number, begin, n, i_first = tile_of_program(
        p_cu, p_order, n_sequences, n_slots, HAS_ORDER, BLOCK_M
    )
    if i_first < n:
        i_last = tl.minimum(i_first + BLOCK_M, n) - 1
        o_i = i_first + tl.arange(0, BLOCK_M)
        o_d = tl.arange(0, BLOCK_D)
        o_l = tl.arange(0, BLOCK_L)
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
            last = unforeseen(last, p_cu, False)
        a, b, c = phases(first, last, i_first, i_first + BLOCK_M - 1, n, FLAT_FROM, False, BLOCK_N)
        p_share = p_learned + i_number.to(tl.int64) * BLOCK_L + o_l
        b_table = tl.load(p_share)
        for turn in tl.range(a, b + last - c, num_stages=STAGES):
            tile = tl.where(turn < b, turn, turn - b + c)
            o_j = tile * BLOCK_N + tl.arange(0, BLOCK_N)
            b_k = load_rows(p_k, begin, o_j, n, o_d, s_kt, HEAD_DIM, BLOCK_D)
            b_v = load_rows(p_v, begin, o_j, n, o_d, s_vt, HEAD_DIM, BLOCK_D)
            b_j = places_of(p_positions, begin, o_j, n, HAS_POSITIONS)
            b_ds = pair_gradient(
                b_q, b_k, b_v, b_g, b_i, b_j, b_lse, b_delta, p_params, p_dense, s_dense, begin, n,
                o_i, o_j, i_head, scale, window_left, window_right, dropout_p, seed,
                SCORE, HAS_DENSE, HAS_WINDOW, HAS_DROPOUT, PRECISION,
            )  # fmt: skip
            b_which = LOOKUP(b_i[:, None], b_j[None, :], i_head, p_params)
            b_which += tl.zeros(b_ds.shape, tl.int32)
            # Those that the tile has, of a table that goes by the distance.
            least = tl.min(b_which)
            most = tl.max(b_which)
            for index in range(least, most + 1):
                b_part = total(tl.where(b_which == index, b_ds, 0.0))
                b_table += tl.where(o_l == index, b_part, 0.0)
        tl.store(p_share, b_table)
