"""Disentangled attention, forward: one program a tile of queries of one head, an online softmax over
its keys, to whose scores each pair adds what its distance has with its query and with its key.

He et al., arXiv 2006.03654, equation 4. A program multiplies 4 D numbers of a pair, and gathers for
it two of those that products with the tables of positions have left, 4 bytes in halves and 8 in
float32, and with a line of rows, 8 more to know which. A tile of M queries and N keys has M + N - 1
distances, so that of memory it meets as many numbers of each query and of each key: 2 N / M + 2
times its pairs' at the most, which caches hold. It is gathers that such a tile waits for, so each is
made in the order in which its numbers lie: those of a query along the keys, those of a key along the
queries, turned over afterwards. Where distances are so long that all have one row, a query has one
number and a key has one, and nothing is gathered for a pair.

Shapes: T packed tokens, B sequences, H heads, D head dim, R rows of the tables, S slots (slots.py).
Names: p_ pointer, b_ block value, o_ offsets, m_ mask, i_ program index, n_ count, s_ stride.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ..attention.score_tile import LOG2E, NO_SCORE
from ..attention.tiles import load_rows, store_rows
from ..slots import tile_of_program


@triton.jit
def places_of(p_positions, begin, o_rows, n, HAS_POSITIONS: tl.constexpr):
    """Where rows of a sequence (n > 0) are; beyond its end, where its last one is."""
    o_there = tl.minimum(o_rows, n - 1)
    if HAS_POSITIONS:
        return tl.load(p_positions + begin + o_there).to(tl.int64)
    else:
        return o_there


@triton.jit
def rows_of(p_line, b_back, reach, at_zero, n_rows, HAS_LINE: tl.constexpr):
    """Which row of the tables distances i - j have; all longer ones have that of `reach`."""
    if HAS_LINE:
        b_back = tl.minimum(tl.maximum(b_back, -reach), reach)
        return tl.load(p_line + (b_back + reach).to(tl.int32))
    else:
        return tl.minimum(tl.maximum(b_back + at_zero, 0), n_rows - 1).to(tl.int32)


@triton.jit
def _walk(
    b_acc, b_top, b_sum, b_q, first, last,
    p_k, p_v, p_of_query, p_of_keys, p_line, p_positions, s_kt, s_vt, s_row,
    begin, n, b_i, reach, at_zero, n_rows, factor,
    SIDE: tl.constexpr, STAGES: tl.constexpr, HAS_KEYS: tl.constexpr, HAS_QUERIES: tl.constexpr,
    HAS_LINE: tl.constexpr, HAS_POSITIONS: tl.constexpr, HEAD_DIM: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Key tiles [first, last): so far left of the queries (-1) or right of them (1) that all
    distances have one row, or anywhere (0).

    p_of_query (M,): to each query's own numbers; p_of_keys: to the first key's.
    """
    o_d = tl.arange(0, BLOCK_D)
    b_across = tl.zeros_like(b_top)
    if SIDE != 0:
        row = rows_of(p_line, -SIDE * reach, reach, at_zero, n_rows, HAS_LINE)
        if HAS_KEYS:
            b_across = tl.load(p_of_query + row).to(tl.float32)
    for tile in tl.range(first, last, num_stages=STAGES):
        o_j = tile * BLOCK_N + tl.arange(0, BLOCK_N)
        b_k = load_rows(p_k, begin, o_j, n, o_d, s_kt, HEAD_DIM, BLOCK_D)
        b_s = tl.dot(b_q, tl.trans(b_k), input_precision=PRECISION) * factor  # (M, N)
        p_of_key = p_of_keys + tl.minimum(o_j, n - 1).to(tl.int64) * s_row  # (N,)
        if SIDE == 0:
            b_j = places_of(p_positions, begin, o_j, n, HAS_POSITIONS)
            if HAS_KEYS:
                b_row = rows_of(
                    p_line, b_i[:, None] - b_j[None, :], reach, at_zero, n_rows, HAS_LINE
                )
                b_s += tl.load(p_of_query[:, None] + b_row).to(tl.float32)
            if HAS_QUERIES:
                b_row = rows_of(
                    p_line, b_i[None, :] - b_j[:, None], reach, at_zero, n_rows, HAS_LINE
                )
                b_s += tl.trans(tl.load(p_of_key[:, None] + b_row)).to(tl.float32)
            b_s = tl.where(o_j[None, :] < n, b_s, NO_SCORE)
        else:
            b_down = tl.zeros([BLOCK_N], tl.float32)
            if HAS_QUERIES:
                b_down = tl.load(p_of_key + row).to(tl.float32)
            b_s += tl.where(o_j < n, b_down, NO_SCORE)[None, :]
        b_higher = tl.maximum(b_top, tl.max(b_s, 1) + b_across)
        b_p = tl.exp2(b_s - (b_higher - b_across)[:, None])
        b_shrink = tl.exp2(b_top - b_higher)
        b_sum = b_sum * b_shrink + tl.sum(b_p, 1)
        b_v = load_rows(p_v, begin, o_j, n, o_d, s_vt, HEAD_DIM, BLOCK_D)
        b_acc = b_acc * b_shrink[:, None]
        b_acc = tl.dot(b_p.to(b_v.dtype), b_v, b_acc, input_precision=PRECISION)
        b_top = b_higher
    return b_acc, b_top, b_sum


@triton.jit(do_not_specialize=["n_sequences", "n_slots", "reach", "at_zero", "n_rows"])
def disentangled_forward(
    p_q, p_k, p_v, p_out, p_of_queries, p_of_keys, p_line, p_cu, p_positions,
    s_qt, s_qh, s_kt, s_kh, s_vt, s_vh, s_out, s_head, s_row,
    n_sequences, n_slots, reach, at_zero, n_rows, scale,
    HAS_KEYS: tl.constexpr, HAS_QUERIES: tl.constexpr, HAS_LINE: tl.constexpr,
    HAS_FAR: tl.constexpr, HAS_POSITIONS: tl.constexpr, STAGES: tl.constexpr,
    HEAD_DIM: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Program (H S, tiles of a slot): out (T, H, D) of a tile of queries.

    p_of_queries, p_of_keys (H, T, R): what queries have with the rows of positions as keys, keys
    with those of positions as queries; scaled, in base 2. p_line (2 reach + 1,) int32: the rows of
    distances from -reach; else that of distance d is at_zero + d, held to those that there are.
    HAS_FAR: a sequence may be longer than reach.
    """
    i_head, _, _, begin, n, i_first = tile_of_program(
        p_cu, p_cu, n_sequences, n_slots, False, BLOCK_M
    )
    if i_first < n:
        o_i = i_first + tl.arange(0, BLOCK_M)
        o_d = tl.arange(0, BLOCK_D)
        i_wide = i_head.to(tl.int64)
        b_q = load_rows(p_q + i_wide * s_qh, begin, o_i, n, o_d, s_qt, HEAD_DIM, BLOCK_D)
        b_i = places_of(p_positions, begin, o_i, n, HAS_POSITIONS)
        p_k += i_wide * s_kh
        p_v += i_wide * s_vh
        # Of rows beyond the sequence the last one's: each gather is of something that is there.
        o_own = begin + tl.minimum(o_i, n - 1)
        p_of_query = p_of_queries + i_wide * s_head + o_own * s_row
        p_of_keys += i_wide * s_head + begin * s_row
        first = 0
        last = (n + BLOCK_N - 1) // BLOCK_N
        a = first
        b = last
        if HAS_FAR:
            # Positions are as far apart as places are, or more.
            a = tl.minimum(tl.maximum(i_first - reach + 1, 0) // BLOCK_N, last)
            b = (i_first + BLOCK_M - 1 + reach + BLOCK_N - 1) // BLOCK_N
            b = tl.minimum(tl.maximum(b, a), last)
        factor = scale * LOG2E
        b_acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
        b_top = tl.full([BLOCK_M], NO_SCORE, tl.float32)
        b_sum = tl.zeros([BLOCK_M], tl.float32)
        b_acc, b_top, b_sum = _walk(
            b_acc, b_top, b_sum, b_q, a, b,
            p_k, p_v, p_of_query, p_of_keys, p_line, p_positions, s_kt, s_vt, s_row,
            begin, n, b_i, reach, at_zero, n_rows, factor,
            0, STAGES, HAS_KEYS, HAS_QUERIES, HAS_LINE, HAS_POSITIONS, HEAD_DIM, BLOCK_N, BLOCK_D,
            PRECISION,
        )  # fmt: skip
        if HAS_FAR:
            b_acc, b_top, b_sum = _walk(
                b_acc, b_top, b_sum, b_q, first, a,
                p_k, p_v, p_of_query, p_of_keys, p_line, p_positions, s_kt, s_vt, s_row,
                begin, n, b_i, reach, at_zero, n_rows, factor,
                -1, None, HAS_KEYS, HAS_QUERIES, HAS_LINE, HAS_POSITIONS, HEAD_DIM, BLOCK_N,
                BLOCK_D, PRECISION,
            )  # fmt: skip
            b_acc, b_top, b_sum = _walk(
                b_acc, b_top, b_sum, b_q, b, last,
                p_k, p_v, p_of_query, p_of_keys, p_line, p_positions, s_kt, s_vt, s_row,
                begin, n, b_i, reach, at_zero, n_rows, factor,
                1, None, HAS_KEYS, HAS_QUERIES, HAS_LINE, HAS_POSITIONS, HEAD_DIM, BLOCK_N,
                BLOCK_D, PRECISION,
            )  # fmt: skip
        store_rows(
            p_out + i_wide * HEAD_DIM, b_acc / b_sum[:, None], begin, o_i, n, o_d, s_out, HEAD_DIM,
            BLOCK_D,
        )  # fmt: skip
