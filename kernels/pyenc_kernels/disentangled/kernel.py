"""Disentangled attention, forward: one program a tile of queries of one head, an online softmax
over its keys, to whose scores each pair adds what its distance has with its query and with its key.

He et al., arXiv 2006.03654, equation 4; scores in base 2. For a pair matrix units do 4 D
operations, and two numbers are gathered of the products with the tables of positions, 4 bytes in
halves and 8 in float32, with another 8 of a line that says which, a row for each distance. The line
is in cache; most of the others are of no other pair, so that of memory the products are read whole,
once: in halves 4 R bytes for each token and head, as many as q, k, v and out have where R is 2 D.
Each gather is made in the order in which its numbers lie: those of a query along the keys, those of
a key along the queries, turned over afterwards. Where distances are so long that all have one row,
a query has one number and a key has one, and none is gathered for a pair.

Shapes: T packed tokens, B sequences, H heads, D head dim, R rows of the tables, S slots (slots.py).
Names: p_ pointer, b_ block value, o_ offsets, m_ mask, i_ program index, n_ count, s_ stride.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ..attention.score_tile import LOG2E, NO_SCORE
from ..attention.tiles import load_rows, store_rows, unforeseen
from ..slots import tile_of_program


@triton.jit
def places_of(p_positions, begin, o_rows, n, HAS_POSITIONS: tl.constexpr):
    """Where rows of a sequence (n > 0) are; with positions, beyond its end, where its last one is.

    In 64 bits, as addresses are: in the line a tile's are then those of one pair and known numbers.
    """
    if HAS_POSITIONS:
        return tl.load(p_positions + begin + tl.minimum(o_rows, n - 1)).to(tl.int64)
    else:
        return o_rows.to(tl.int64)


@triton.jit
def gathered(p_numbers):
    """What lies at (rows, columns) pointers, by warps that go along the columns: of a third axis
    Triton gives a thread one column, as it would not of the two that tiles of keys have, of which
    one takes sixteen bytes."""
    return tl.reshape(tl.load(p_numbers[None, :, :]), [p_numbers.shape[0], p_numbers.shape[1]])


@triton.jit
def rows_of(p_line, b_back, reach, HAS_POSITIONS: tl.constexpr):
    """Which row of the tables distances i - j have, (rows, columns); p_line: to that of 0. Places
    of a tile are no further apart than the line is long, positions may be."""
    if HAS_POSITIONS:
        b_back = tl.minimum(tl.maximum(b_back, -reach), reach)
    return gathered(p_line + b_back)


@triton.jit
def _walk(
    b_acc, b_top, b_sum, b_q, first, last,
    p_k, p_v, p_of_query, p_of_keys, p_line, p_positions, s_kt, s_vt, s_row,
    begin, n, b_i, reach, factor,
    SIDE: tl.constexpr, HAS_KEYS: tl.constexpr, HAS_QUERIES: tl.constexpr,
    HAS_POSITIONS: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Key tiles [first, last): so far left of the queries (-1) or right of them (1) that all
    distances have one row, or anywhere (0).

    p_of_query (M,): to each query's own numbers; p_of_keys: to those of the first token.
    """
    o_d = tl.arange(0, BLOCK_D)
    if SIDE != 0:
        row = tl.load(p_line - SIDE * reach)
        b_across = tl.zeros_like(b_top)
        if HAS_KEYS:
            b_across = tl.load(p_of_query + row).to(tl.float32)
    for tile in range(first, last):
        o_n = tl.arange(0, BLOCK_N)
        o_j = tile * BLOCK_N + o_n
        # Of keys beyond the sequence the last one's: each gather is of something that is there.
        p_of_key = p_of_keys + (begin + tile * BLOCK_N) * s_row
        p_of_key = p_of_key + tl.minimum(o_n, n - 1 - tile * BLOCK_N) * s_row  # (N,)
        # The scores' product comes last: what is met first gives the others its layout, and with
        # that of a gather each score would be computed twice.
        if SIDE == 0:
            b_j = places_of(p_positions, begin, o_j, n, HAS_POSITIONS)
            if HAS_KEYS:
                # Not i - j, which Triton would take for a run of numbers along the queries.
                b_back = 0 - (b_j[None, :] - b_i[:, None])
                b_row = rows_of(p_line, b_back, reach, HAS_POSITIONS)
                b_of_query = gathered(p_of_query[:, None] + b_row)
            if HAS_QUERIES:
                b_back = b_i[None, :] - b_j[:, None]
                b_row = rows_of(p_line, b_back, reach, HAS_POSITIONS)
                b_of_key = tl.trans(gathered(p_of_key[:, None] + b_row))
        b_k = load_rows(p_k, begin, o_j, n, o_d, s_kt, HEAD_DIM, BLOCK_D)
        b_s = tl.dot(b_q, tl.trans(b_k), input_precision=PRECISION) * factor  # (M, N)
        if SIDE == 0:
            if HAS_KEYS:
                b_s += b_of_query.to(tl.float32)
            if HAS_QUERIES:
                b_s += b_of_key.to(tl.float32)
            b_s = tl.where(o_j[None, :] < n, b_s, NO_SCORE)
            b_higher = tl.maximum(b_top, tl.max(b_s, 1))
            b_p = tl.exp2(b_s - b_higher[:, None])
        else:
            b_down = tl.zeros([BLOCK_N], tl.float32)
            if HAS_QUERIES:
                b_down = tl.load(p_of_key + row).to(tl.float32)
            if SIDE > 0:
                b_down = tl.where(o_j < n, b_down, NO_SCORE)
            b_s += b_down[None, :]
            b_higher = tl.maximum(b_top, tl.max(b_s, 1) + b_across)
            b_p = tl.exp2(b_s - (b_higher - b_across)[:, None])
        b_v = load_rows(p_v, begin, o_j, n, o_d, s_vt, HEAD_DIM, BLOCK_D)
        b_shrink = tl.exp2(b_top - b_higher)
        b_sum = b_sum * b_shrink + tl.sum(b_p, 1)
        b_acc = b_acc * b_shrink[:, None]
        b_acc = tl.dot(b_p.to(b_v.dtype), b_v, b_acc, input_precision=PRECISION)
        b_top = b_higher
    return b_acc, b_top, b_sum


@triton.jit(do_not_specialize=["n_sequences", "n_slots", "wide", "reach"])
def disentangled_forward(
    p_q, p_k, p_v, p_out, p_of_queries, p_of_keys, p_line, p_cu, p_positions,
    s_qt, s_qh, s_kt, s_kh, s_vt, s_vh, s_out, s_head, s_row,
    n_sequences, n_slots, wide, reach, scale,
    HAS_KEYS: tl.constexpr, HAS_QUERIES: tl.constexpr, HAS_POSITIONS: tl.constexpr,
    HEAD_DIM: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Program (H S, tiles of a slot): out (T, H, D) of a tile of queries.

    p_of_queries, p_of_keys (H, T, R): what queries have with the rows of positions as keys, keys
    with those of positions as queries; scaled, in base 2. p_line (2 wide + 1,) int32: the rows of
    distances from -wide on, which from reach on are the same on either side.
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
        p_line += wide
        p_k += i_wide * s_kh
        p_v += i_wide * s_vh
        # Of rows beyond the sequence the last one's: each gather is of something that is there.
        o_own = begin + tl.minimum(o_i, n - 1)
        p_of_query = p_of_queries + i_wide * s_head + o_own * s_row
        p_of_keys += i_wide * s_head
        first = 0
        last = unforeseen((n + BLOCK_N - 1) // BLOCK_N, p_cu, False)
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
            begin, n, b_i, reach, factor,
            0, HAS_KEYS, HAS_QUERIES, HAS_POSITIONS, HEAD_DIM, BLOCK_N, BLOCK_D, PRECISION,
        )  # fmt: skip
        b_acc, b_top, b_sum = _walk(
            b_acc, b_top, b_sum, b_q, first, a,
            p_k, p_v, p_of_query, p_of_keys, p_line, p_positions, s_kt, s_vt, s_row,
            begin, n, b_i, reach, factor,
            -1, HAS_KEYS, HAS_QUERIES, HAS_POSITIONS, HEAD_DIM, BLOCK_N, BLOCK_D, PRECISION,
        )  # fmt: skip
        b_acc, b_top, b_sum = _walk(
            b_acc, b_top, b_sum, b_q, b, last,
            p_k, p_v, p_of_query, p_of_keys, p_line, p_positions, s_kt, s_vt, s_row,
            begin, n, b_i, reach, factor,
            1, HAS_KEYS, HAS_QUERIES, HAS_POSITIONS, HEAD_DIM, BLOCK_N, BLOCK_D, PRECISION,
        )  # fmt: skip
        store_rows(
            p_out + i_wide * HEAD_DIM, b_acc / b_sum[:, None], begin, o_i, n, o_d, s_out, HEAD_DIM,
            BLOCK_D,
        )  # fmt: skip
