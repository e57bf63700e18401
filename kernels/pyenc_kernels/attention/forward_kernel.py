"""Attention forward: one program a tile of queries of one head, an online softmax over its keys.

Dao, arXiv 2307.08691, over packed sequences; scores in base 2. Where a bias is affine on each side
of the query (ALiBi), a tile off the diagonal needs one number a key and one a query. The former are
the same in every tile, the latter go into the shift of the running maximum: a score costs one
addition more than without a bias.

Shapes: T packed tokens, B sequences, H heads, D head dim, S slots (slots.py).
Names: p_ pointer, b_ block value, o_ offsets, m_ mask, i_ program index, n_ count, s_ stride.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ..slots import GRAIN, tile_of_program

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


@triton.jit
def side_terms(
    SCORE: tl.constexpr, AFFINE_FROM: tl.constexpr, LEFT: tl.constexpr,
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
    corner = SCORE(nearest * 0.0, i_near, nearest, i_head, p_params)
    return (b_row - corner) * LOG2E, b_column * LOG2E


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
def phases(
    first, last, i_first, i_last, n,
    AFFINE_FROM: tl.constexpr, PLAIN: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Where the affine tiles end and begin again in [first, last): (a, b, c).

    [first, a) lie left of the rows i_first to i_last, [b, last) right of them, [a, b) between. All
    rows of a block count, also those beyond the sequence, since its extreme positions do. Of those
    on the right [b, c) are full; [c, last) is the sequence's last where that is not, or none.
    PLAIN: no bias at all; [first, a) are then all full tiles, [a, b) the one that is not.
    """
    if PLAIN:
        a = tl.minimum(tl.maximum(n // BLOCK_N, first), last)
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
def _walk(
    b_acc, b_top, b_sum, b_q, first, last, gap, after,
    p_k, p_v, p_positions, p_params, p_dense, s_kt, s_vt, s_dense,
    begin, n, o_i, b_i, i_head, scale, window_left, window_right,
    dropout_p, seed,
    SIDE: tl.constexpr, SCORE: tl.constexpr, STAGES: tl.constexpr, AFFINE_FROM: tl.constexpr,
    BY_DISTANCE: tl.constexpr, PLAIN: tl.constexpr, HAS_POSITIONS: tl.constexpr,
    HAS_DENSE: tl.constexpr, HAS_WINDOW: tl.constexpr, HAS_DROPOUT: tl.constexpr,
    HEAD_DIM: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Key tiles [first, last) on one side of the queries: -1 left, 1 right, 0 any.

    On a side they are full. Those from `gap` on stand for those from `after` on.
    """
    o_d = tl.arange(0, BLOCK_D)
    if SIDE != 0 and BY_DISTANCE:
        b_columns = columns_of(SCORE, AFFINE_FROM, SIDE < 0, i_head, p_params, BLOCK_N)
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
        elif PLAIN:
            # The maximum is taken before scaling: PLAIN is for scales that keep the order.
            b_higher = tl.maximum(b_top, tl.max(b_dot, 1) * (scale * LOG2E))
            b_shift = b_higher
            b_p = tl.exp2(b_dot * (scale * LOG2E) - b_shift[:, None])
        else:
            b_j = places_of(p_positions, begin, o_j, n, HAS_POSITIONS)
            nearest = nearest_of(b_j, tile, SIDE < 0, HAS_POSITIONS, BLOCK_N)
            b_row, b_column = side_terms(
                SCORE, AFFINE_FROM, SIDE < 0, b_i, b_j, nearest, i_head, p_params
            )
            if BY_DISTANCE:
                b_column = b_columns
            b_s = b_dot * (scale * LOG2E) + b_column[None, :]
            b_higher = tl.maximum(b_top, tl.max(b_s, 1) + b_row)
            b_shift = b_higher
            b_p = tl.exp2(b_s - (b_shift - b_row)[:, None])
        b_shrink = tl.exp2(b_top - b_shift)
        b_sum = b_sum * b_shrink + tl.sum(b_p, 1)
        if HAS_DROPOUT:
            b_p = b_p * keep_factor(seed, (begin + o_i)[:, None], o_j[None, :], i_head, dropout_p)
        b_v = load_rows(p_v, begin, o_j, n, o_d, s_vt, HEAD_DIM, BLOCK_D)
        b_acc = b_acc * b_shrink[:, None]
        b_acc = tl.dot(b_p.to(b_v.dtype), b_v, b_acc, input_precision=PRECISION)
        b_top = b_higher
    return b_acc, b_top, b_sum


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


@triton.jit(do_not_specialize=["n_sequences", "n_slots", "window_left", "window_right", "seed"])
def attention_forward(
    p_q, p_k, p_v, p_out, p_lse, p_cu, p_positions, p_params, p_dense, p_ranges, p_order,
    s_qt, s_qh, s_kt, s_kh, s_vt, s_vh, n_group, s_params, s_dense_h, s_dense,
    n_sequences, n_slots, n_heads, scale, window_left, window_right, dropout_p, seed,
    SCORE: tl.constexpr, STAGES: tl.constexpr, AFFINE_FROM: tl.constexpr,
    BY_DISTANCE: tl.constexpr, PLAIN: tl.constexpr, HAS_POSITIONS: tl.constexpr,
    HAS_DENSE: tl.constexpr, HAS_WINDOW: tl.constexpr, HAS_DROPOUT: tl.constexpr,
    HAS_RANGES: tl.constexpr, HAS_ORDER: tl.constexpr, HEAD_DIM: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Program (H S, tiles of a slot): out (T, H, D) of a tile of queries, its log-sum-exp (T, H).

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
        a, b, c = phases(
            first, last, i_first, i_first + BLOCK_M - 1, n, AFFINE_FROM, PLAIN, BLOCK_N
        )
        b_acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
        b_top = tl.full([BLOCK_M], NO_SCORE, tl.float32)
        b_sum = tl.zeros([BLOCK_M], tl.float32)
        # The middle first: with a bias that falls off the largest scores are there, and the running
        # maximum moves little afterwards.
        b_acc, b_top, b_sum = _walk(
            b_acc, b_top, b_sum, b_q, a, b + last - c, b, c,
            p_k, p_v, p_positions, p_params, p_dense, s_kt, s_vt, s_dense,
            begin, n, o_i, b_i, i_head, scale, window_left, window_right, dropout_p, seed,
            0, SCORE, STAGES, AFFINE_FROM, BY_DISTANCE, False, HAS_POSITIONS, HAS_DENSE,
            HAS_WINDOW, HAS_DROPOUT, HEAD_DIM, BLOCK_N, BLOCK_D, PRECISION,
        )  # fmt: skip
        if PLAIN or AFFINE_FROM is not None:
            b_acc, b_top, b_sum = _walk(
                b_acc, b_top, b_sum, b_q, first, a, a, a,
                p_k, p_v, p_positions, p_params, p_dense, s_kt, s_vt, s_dense,
                begin, n, o_i, b_i, i_head, scale, window_left, window_right, dropout_p, seed,
                -1, SCORE, None, AFFINE_FROM, BY_DISTANCE, PLAIN, HAS_POSITIONS, HAS_DENSE,
                HAS_WINDOW, HAS_DROPOUT, HEAD_DIM, BLOCK_N, BLOCK_D, PRECISION,
            )  # fmt: skip
        if AFFINE_FROM is not None:
            b_acc, b_top, b_sum = _walk(
                b_acc, b_top, b_sum, b_q, b, c, c, c,
                p_k, p_v, p_positions, p_params, p_dense, s_kt, s_vt, s_dense,
                begin, n, o_i, b_i, i_head, scale, window_left, window_right, dropout_p, seed,
                1, SCORE, None, AFFINE_FROM, BY_DISTANCE, False, HAS_POSITIONS, HAS_DENSE,
                HAS_WINDOW, HAS_DROPOUT, HEAD_DIM, BLOCK_N, BLOCK_D, PRECISION,
            )  # fmt: skip
        p_out += i_head * HEAD_DIM
        store_rows(
            p_out, b_acc / b_sum[:, None], begin, o_i, n, o_d, n_heads * HEAD_DIM, HEAD_DIM, BLOCK_D
        )
        b_lse = (b_top + tl.log2(b_sum)) * LN2
        tl.store(p_lse + (begin + o_i) * n_heads + i_head, b_lse, mask=o_i < n)
