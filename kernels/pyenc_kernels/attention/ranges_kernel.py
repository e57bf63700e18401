"""Which keys a decaying bias has made too faint to matter: a range of grains for each of queries.

A pass of its own, so that the main kernels loop a known number of times. In base 2 the score of key
j is s_j = a q.k_j + bias, bias <= -mu |i - j|, and the scores of a query's own grain give a lower
bound of its log-sum-exp. For every vector c, a q.k_j <= a q.c + a |q| |k_j - c|; so all keys from
distance d outward carry at most 2^(a q.c + a |q| max|k_j - c| - mu d) / (1 - 2^-mu). For a bias
that says what all keys from d outward are given, its tail, that stands for the last part. A side
ends where for every query of the grain that is at most 2^lse eps / 2: at most eps of a row is left
out,
    |out - out'| <= 2 eps max|v|,  |lse - lse'| <= -ln(1 - eps).
Comparisons are written so that a NaN means: meet.

A map of scores has, in place of s - mu d, f(s) - mu d with f(s) what it makes of s at no distance,
which does not fall as s grows: f of a bound of a q.k_j bounds f of that. The bound is of the score
itself, a q.c in it: a sum could be taken less that, a map not.

Shapes and names: as in forward_kernel.py; grains of slots.py, S slots of them.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ..slots import GRAIN, sequence_of_slot, tile_of_program
from .score_tile import LN2, LOG2E, NO_SCORE, pair_scores, places_of
from .tiles import load_rows

SPREAD = tl.constexpr(32)


@triton.jit(do_not_specialize=["n_sequences", "n_slots"])
def key_reach(
    p_k, p_center, p_reach, p_cu, s_kt, s_kh, n_sequences, n_slots,
    HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Program (S H,): max |k - c| of a grain, p_reach (H, S), 0 in an unused slot; and c, p_center
    (B, H, D), by a sequence's first. Heads take turns: programs that run together read whole rows.

    c may be any vector. The nearer the keys' mean the better; the mean of SPREAD of them, evenly
    spread, is within 1/sqrt(SPREAD) of their spread, and each program makes it for itself.
    The norm is rounded up by what its own sum, and the score's, may lose.
    """
    n_heads = tl.num_programs(0) // n_slots
    i_head = tl.program_id(0) % n_heads
    i_slot = tl.program_id(0) // n_heads
    i_sequence, begin, end, i_tile = sequence_of_slot(p_cu, i_slot, n_sequences, GRAIN)
    n = (end - begin).to(tl.int32)
    o_j = i_tile.to(tl.int32) * GRAIN + tl.arange(0, GRAIN)
    o_d = tl.arange(0, BLOCK_D)
    p_k += i_head.to(tl.int64) * s_kh
    o_spread = (tl.arange(0, SPREAD).to(tl.int64) * n // SPREAD).to(tl.int32)
    b_spread = load_rows(p_k, begin, o_spread, n, o_d, s_kt, HEAD_DIM, BLOCK_D).to(tl.float32)
    b_center = tl.sum(b_spread, 0) / SPREAD
    p_row = p_center + (i_sequence.to(tl.int64) * n_heads + i_head) * HEAD_DIM
    if i_tile == 0:
        tl.store(p_row + o_d, b_center, mask=o_d < HEAD_DIM)
    b_k = load_rows(p_k, begin, o_j, n, o_d, s_kt, HEAD_DIM, BLOCK_D).to(tl.float32)
    b_apart = b_k - b_center[None, :]
    b_length = tl.sqrt(tl.sum(b_apart * b_apart, 1)) * (1.0 + SLACK)
    # |k| as well: what rounding may add to the score is in proportion to it.
    b_length += tl.sqrt(tl.sum(b_k * b_k, 1)) * SLACK
    b_length = tl.where(o_j < n, b_length, 0.0)
    # A maximum that lets NaN through: a NaN must be met.
    reach = tl.max(b_length, 0)
    broken = tl.sum((b_length != b_length).to(tl.int32), 0) > 0
    tl.store(p_reach + i_head * n_slots + i_slot, tl.where(broken, float("inf"), reach))


@triton.jit
def key_outer(p_reach, p_outer, p_cu, n_slots, BLOCK_S: tl.constexpr):
    """Program (B, H): the largest reach of a grain and of all before it in its sequence, and of all
    after it, p_outer (2, H, S)."""
    i_sequence = tl.program_id(0)
    i_head = tl.program_id(1)
    begin = tl.load(p_cu + i_sequence).to(tl.int64)
    n = (tl.load(p_cu + i_sequence + 1).to(tl.int64) - begin).to(tl.int32)
    n_grains = (n + GRAIN - 1) // GRAIN
    first = i_head * n_slots + (begin // GRAIN).to(tl.int32) + i_sequence
    n_blocks = (n_grains + BLOCK_S - 1) // BLOCK_S
    o_own = tl.arange(0, BLOCK_S)
    for AFTER in tl.static_range(2):
        most = tl.max(tl.zeros([BLOCK_S], tl.float32), 0)
        for turn in range(n_blocks):
            o_in = turn * BLOCK_S + o_own
            m_in = o_in < n_grains
            o_grain = first + (n_grains - 1 - o_in if AFTER else o_in)
            b_reach = tl.load(p_reach + o_grain, mask=m_in, other=0.0)
            # (S, S): row r has the grains up to r.
            b_before = tl.where(o_own[None, :] <= o_own[:, None], b_reach[None, :], 0.0)
            b_most = tl.maximum(tl.max(b_before, 1), most)
            p_most = p_outer + AFTER * tl.num_programs(1) * n_slots + o_grain
            tl.store(p_most, b_most, mask=m_in)
            most = tl.maximum(most, tl.max(b_reach, 0))


SLACK = tl.constexpr(1e-4)
"""Of a length: more than 264 roundings of 2^-23, those of a dot product of 256 numbers, twice."""


@triton.jit
def _side_end(
    b_along, b_length, b_lse, b_i, p_outer, p_positions, begin, n, first_grain, n_grains,
    budget, i_head, p_params, SCORE: tl.constexpr, DECAY: tl.constexpr, TAIL: tl.constexpr,
    MAPPED: tl.constexpr, LEFT: tl.constexpr, HAS_POSITIONS: tl.constexpr, BLOCK_S: tl.constexpr,
):  # fmt: skip
    """How many grains on one side of `first_grain` must be met, counted outward from it."""
    if TAIL is None:
        mu = DECAY(i_head, p_params, LEFT) * LOG2E
        # 1 / (1 - 2^-mu); where mu is small the difference cancels, and x - x^2/2 <= 1 - e^-x.
        x = mu * LN2
        geometric = -tl.log2(tl.where(x < 0.01, x - 0.5 * x * x, 1.0 - tl.exp2(-mu))) + 1e-4
    if LEFT:
        n_side = first_grain
    else:
        n_side = n_grains - first_grain - 1
    # Further out the bound falls: distances grow, and the largest reach from there on does not. So
    # those to be met are the nearest ones, and a search of BLOCK_S places a turn finds how many.
    n_met = n_side * 0
    n_left = n_side
    while n_left > 0:
        step = (n_left + BLOCK_S - 1) // BLOCK_S
        o_part = tl.arange(0, BLOCK_S)
        m_part = o_part * step < n_left
        o_out = n_met + tl.minimum(o_part * step + step, n_left) - 1  # each part's last
        if LEFT:
            o_grain = first_grain - 1 - o_out
            o_near = o_grain * GRAIN + GRAIN - 1
        else:
            o_grain = first_grain + 1 + o_out
            o_near = o_grain * GRAIN
        b_most = tl.load(p_outer + o_grain, mask=m_part, other=0.0)
        b_near = places_of(p_positions, begin, tl.where(m_part, o_near, 0), n, HAS_POSITIONS)
        b_away = tl.abs(b_i[:, None] - b_near[None, :])  # (M, S)
        b_bound = b_along[:, None] + b_length[:, None] * b_most[None, :]
        if MAPPED:
            b_at = b_i[:, None] + b_bound * 0.0
            b_mapped = SCORE(b_bound * LN2, b_at, b_at, i_head, p_params) * LOG2E
            # What is no number stays open; what is no row stays closed.
            b_mapped += tl.abs(b_mapped) * SLACK
            b_bound = tl.where(tl.abs(b_bound) < float("inf"), b_mapped, b_bound)
        if TAIL is None:
            b_bound += geometric - mu * b_away
        else:
            b_tail = TAIL(b_away, i_head, p_params, LEFT) * LOG2E
            b_tail = tl.where(b_tail == NO_SCORE, -1e30, b_tail)  # hidden: no less than a number
            b_bound += b_tail + tl.abs(b_tail) * 1e-6
        b_faint = b_bound <= b_lse[:, None] + budget
        b_open = tl.max((~b_faint).to(tl.int32), 0) > 0
        n_open = tl.max(tl.where(b_open & m_part, o_part + 1, 0), 0) * step
        n_met += tl.minimum(n_open, n_left)
        n_left = tl.where(n_open < n_left, tl.minimum(step, n_left - n_open) - 1, 0)
    if TAIL is None:
        n_met = tl.where(mu > 0, n_met, n_side)
    return n_met


@triton.jit(do_not_specialize=["n_sequences", "n_slots"])
def key_ranges(
    p_q, p_k, p_center, p_reach, p_outer, p_ranges, p_cu, p_positions, p_params,
    s_qt, s_qh, s_kt, s_kh, s_params, n_sequences, n_slots, scale, eps,
    SCORE: tl.constexpr, DECAY: tl.constexpr, TAIL: tl.constexpr, MAPPED: tl.constexpr,
    HAS_POSITIONS: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr,
    BLOCK_S: tl.constexpr, BLOCK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Program (S H,), heads taking turns: p_ranges (H, S, 2), the grains [first, last) of keys that
    a grain meets."""
    n_heads = tl.num_programs(0) // n_slots
    i_head = tl.program_id(0) % n_heads
    i_slot = tl.program_id(0) // n_heads
    i_sequence, begin, end, i_grain = sequence_of_slot(p_cu, i_slot, n_sequences, GRAIN)
    n = (end - begin).to(tl.int32)
    i_first = i_grain.to(tl.int32) * GRAIN
    i_number = i_head * n_slots + i_slot
    first = i_first // GRAIN
    last = first
    if i_first < n:
        p_params += i_head * s_params
        o_d = tl.arange(0, BLOCK_D)
        p_row = p_center + (i_sequence.to(tl.int64) * n_heads + i_head) * HEAD_DIM
        b_center = tl.load(p_row + o_d, mask=o_d < HEAD_DIM, other=0.0)
        center = tl.sqrt(tl.sum(b_center * b_center, 0))
        n_grains = (n + GRAIN - 1) // GRAIN
        of_sequence = i_head * n_slots + i_slot - first
        own_reach = tl.load(p_reach + of_sequence + first)
        p_outer += of_sequence
        p_further = p_outer + n_heads * n_slots
        left = first * 0
        right = first * 0
        n_parts: tl.constexpr = GRAIN // BLOCK
        for part in tl.range(0, n_parts, num_stages=1):
            o_i = i_first + part * BLOCK + tl.arange(0, BLOCK)
            b_q = load_rows(
                p_q + i_head.to(tl.int64) * s_qh, begin, o_i, n, o_d, s_qt, HEAD_DIM, BLOCK_D
            )
            b_i = places_of(p_positions, begin, o_i, n, HAS_POSITIONS)
            b_top = tl.full([BLOCK], NO_SCORE, tl.float32)
            b_sum = tl.zeros([BLOCK], tl.float32)
            for other in tl.range(0, n_parts, num_stages=1):
                o_j = i_first + other * BLOCK + tl.arange(0, BLOCK)
                b_k = load_rows(
                    p_k + i_head.to(tl.int64) * s_kh, begin, o_j, n, o_d, s_kt, HEAD_DIM, BLOCK_D
                )
                b_j = places_of(p_positions, begin, o_j, n, HAS_POSITIONS)
                b_dot = tl.dot(b_q, tl.trans(b_k), input_precision=PRECISION)
                b_s = pair_scores(
                    SCORE, b_dot, b_i[:, None], b_j[None, :], scale, i_head, p_params, p_q, 0,
                    o_i[:, None], o_j[None, :], n, -1, -1, False, False,
                )  # fmt: skip
                b_higher = tl.maximum(b_top, tl.max(b_s, 1))  # the first block has a key for all
                b_sum = b_sum * tl.exp2(b_top - b_higher)
                b_sum += tl.sum(tl.exp2(b_s - b_higher[:, None]), 1)
                b_top = b_higher
            b_wide = b_q.to(tl.float32)
            b_length = tl.sqrt(tl.sum(b_wide * b_wide, 1)) * (tl.abs(scale) * LOG2E) * (1.0 + SLACK)
            # Less what the rounding of the own grain's scores may have added.
            b_lse = b_top + tl.log2(b_sum) - 1e-4 - b_length * (center + own_reach) * SLACK
            b_along = tl.sum(b_wide * b_center[None, :], 1) * (scale * LOG2E)
            b_along += b_length * center * SLACK
            # Rows beyond the sequence hold nothing open.
            b_along = tl.where(o_i < n, b_along, NO_SCORE)
            budget = tl.log2(eps / 2)
            further = _side_end(
                b_along, b_length, b_lse, b_i, p_outer, p_positions, begin, n, first, n_grains,
                budget, i_head, p_params, SCORE, DECAY, TAIL, MAPPED, True, HAS_POSITIONS, BLOCK_S,
            )  # fmt: skip
            left = tl.maximum(left, further)
            further = _side_end(
                b_along, b_length, b_lse, b_i, p_further, p_positions, begin, n, first, n_grains,
                budget, i_head, p_params, SCORE, DECAY, TAIL, MAPPED, False, HAS_POSITIONS, BLOCK_S,
            )  # fmt: skip
            right = tl.maximum(right, further)
        last = first + 1 + right
        first = first - left
    tl.store(p_ranges + i_number.to(tl.int64) * 2, first)
    tl.store(p_ranges + i_number.to(tl.int64) * 2 + 1, last)


@triton.jit(do_not_specialize=["n_sequences", "n_slots"])
def query_hulls(
    p_ranges, p_hulls, p_cu, n_sequences, n_slots, BLOCK_S: tl.constexpr
):  # fmt: skip
    """Program (S H,): p_hulls (H, S, 2), which all grains of queries lie in that met a grain."""
    _, _, i_number, _, n, j_first = tile_of_program(p_cu, p_cu, n_sequences, n_slots, False, GRAIN)
    i_grain = j_first // GRAIN
    first = i_grain
    last = i_grain
    if j_first < n:
        n_grains = (n + GRAIN - 1) // GRAIN
        p_own = p_ranges + (i_number - i_grain).to(tl.int64) * 2
        for block in range((n_grains + BLOCK_S - 1) // BLOCK_S):
            o_g = block * BLOCK_S + tl.arange(0, BLOCK_S)
            m_g = o_g < n_grains
            b_first = tl.load(p_own + o_g * 2, mask=m_g, other=0)
            b_last = tl.load(p_own + o_g * 2 + 1, mask=m_g, other=0)
            met = m_g & (b_first <= i_grain) & (i_grain < b_last)
            first = tl.minimum(first, tl.min(tl.where(met, o_g, n_grains), 0))
            last = tl.maximum(last, tl.max(tl.where(met, o_g + 1, 0), 0))
    tl.store(p_hulls + i_number.to(tl.int64) * 2, first)
    tl.store(p_hulls + i_number.to(tl.int64) * 2 + 1, last)


@triton.jit(do_not_specialize=["n_work"])
def longest_first(p_ranges, p_order, n_work, BLOCK_W: tl.constexpr, BLOCK_O: tl.constexpr):
    """Program (blocks of H S,): p_order (H S,), the slots falling by the length of their range,
    those of one length as they lie. Each counts who comes before its own: n_work^2 comparisons are
    less than the launches of a sort."""
    o_own = tl.program_id(0) * BLOCK_W + tl.arange(0, BLOCK_W)
    m_own = o_own < n_work
    p_own = p_ranges + o_own.to(tl.int64) * 2
    b_own = tl.load(p_own + 1, mask=m_own, other=0) - tl.load(p_own, mask=m_own, other=0)
    b_place = tl.zeros([BLOCK_W], tl.int32)
    for turn in range((n_work + BLOCK_O - 1) // BLOCK_O):
        o_other = turn * BLOCK_O + tl.arange(0, BLOCK_O)
        m_other = o_other < n_work
        p_other = p_ranges + o_other.to(tl.int64) * 2
        b_end = tl.load(p_other + 1, mask=m_other, other=-1)  # no range is as short as -1
        b_other = b_end - tl.load(p_other, mask=m_other, other=0)
        b_before = b_other[None, :] > b_own[:, None]
        same = b_other[None, :] == b_own[:, None]
        b_before = b_before | (same & (o_other[None, :] < o_own[:, None]))
        b_place += tl.sum(b_before.to(tl.int32), 1)
    tl.store(p_order + b_place, o_own, mask=m_own)
