"""Gradient of a line of numbers that is added by distance: sums of ds along the diagonals.

A band is all pairs of a tile of queries and the tile of keys so many tiles ahead of it. What lies
on a diagonal of one lies on the same diagonal of all: a program adds the tiles up, and their
diagonals at the end. Without atomics: every program recomputes what it needs.

Shapes and names: as in forward_kernel.py.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ..slots import GRAIN
from .grad_queries_kernel import rows_of_head
from .tile_gradient import tile_gradient


@triton.jit(
    do_not_specialize=[
        "n_before", "n_behind", "n_ahead", "n_tokens", "n_sequences", "n_slots", "window_left",
        "window_right", "seed",
    ]
)  # fmt: skip
def attention_grad_line(
    p_q, p_k, p_v, p_grad_out, p_rows, p_shares, p_cu, p_params, p_ranges,
    s_qt, s_qh, s_kt, s_kh, s_vt, s_vh, s_gt, s_gh, s_params,
    n_before, n_behind, n_ahead, n_tokens, n_sequences, n_slots, n_heads, scale, window_left,
    window_right, dropout_p, seed,
    SCORE: tl.constexpr, HAS_WINDOW: tl.constexpr, HAS_DROPOUT: tl.constexpr,
    HAS_RANGES: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK: tl.constexpr, BLOCK_D: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Program (bands, parts, H): p_shares (H, parts, bands, 2, BLOCK), a band's share of the line
    from the sequences whose number is the part's, modulo the parts: at distances from its keys'
    lead less BLOCK on, and from that lead on. n_before: bands whose keys are behind the queries.
    The outermost have what is beyond them too, to n_behind and n_ahead: the line's ends."""
    band = tl.program_id(0) - n_before
    least = tl.where(band == -n_before, -n_behind, band)
    most = tl.where(tl.program_id(0) == tl.num_programs(0) - 1, n_ahead, band)
    i_part = tl.program_id(1)
    i_head = tl.program_id(2)
    o_row = tl.arange(0, BLOCK)
    p_q += i_head.to(tl.int64) * s_qh
    p_k += i_head.to(tl.int64) * s_kh
    p_v += i_head.to(tl.int64) * s_vh
    p_grad_out += i_head.to(tl.int64) * s_gh
    p_params += i_head * s_params
    p_lse, p_delta = rows_of_head(p_rows, i_head, n_heads, n_tokens)
    b_band = tl.zeros([BLOCK, BLOCK], tl.float32)
    n_met = i_part * 0
    for i_sequence in range(i_part, n_sequences, tl.num_programs(1)):
        begin = tl.load(p_cu + i_sequence).to(tl.int64)
        n = (tl.load(p_cu + i_sequence + 1).to(tl.int64) - begin).to(tl.int32)
        n_tiles = (n + BLOCK - 1) // BLOCK
        first_grain = i_head * n_slots + (begin // GRAIN).to(tl.int32) + i_sequence
        for each in range(tl.maximum(least, 1 - n_tiles), tl.minimum(most, n_tiles - 1) + 1):
            for i_tile in range(tl.maximum(-each, 0), tl.minimum(n_tiles, n_tiles - each)):
                j_tile = i_tile + each
                met = i_tile < n_tiles
                if HAS_RANGES:
                    p_range = p_ranges + (first_grain + i_tile * BLOCK // GRAIN).to(tl.int64) * 2
                    j_grain = j_tile * BLOCK // GRAIN
                    met = (tl.load(p_range) <= j_grain) & (j_grain < tl.load(p_range + 1))
                if met:
                    n_met += 1
                    o_i = i_tile * BLOCK + o_row
                    o_j = j_tile * BLOCK + o_row
                    b_band += tile_gradient(
                        p_q, p_k, p_v, p_grad_out, p_lse, p_delta, p_q, p_params, p_q,
                        s_qt, s_kt, s_vt, s_gt, 0, begin, n, o_i, o_j, i_head,
                        scale, window_left, window_right, dropout_p, seed,
                        SCORE, False, False, HAS_WINDOW, HAS_DROPOUT, HEAD_DIM, BLOCK_D, PRECISION,
                    )  # fmt: skip
    # Each row turned by its number: a column then has what lies on one diagonal ahead of the tile's
    # main one, and, of the rows that went over the end, on one behind it.
    o_at = o_row[:, None] + o_row[None, :]
    b_behind = tl.zeros([BLOCK], tl.float32)
    b_ahead = tl.zeros([BLOCK], tl.float32)
    if n_met > 0:
        b_turned = tl.gather(b_band, o_at % BLOCK, 1)
        b_behind = tl.sum(tl.where(o_at < BLOCK, 0.0, b_turned), 0)
        b_ahead = tl.sum(tl.where(o_at < BLOCK, b_turned, 0.0), 0)
    i_share = (i_head * tl.num_programs(1) + i_part) * tl.num_programs(0) + tl.program_id(0)
    p_share = p_shares + i_share.to(tl.int64) * 2 * BLOCK
    tl.store(p_share + o_row, b_behind)
    tl.store(p_share + BLOCK + o_row, b_ahead)
