"""ds of one tile of pairs, recomputed from q, k, v and the log-sum-exp: for kernels that gather it.

Shapes and names: as in forward_kernel.py.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .grad_queries_kernel import load_lse
from .score_tile import keep_factor, pair_scores, places_of
from .tiles import load_rows


@triton.jit
def pair_gradient(
    b_q, b_k, b_v, b_g, b_i, b_j, b_lse, b_delta, p_params, p_dense, s_dense, begin, n, o_i, o_j,
    i_head, scale, window_left, window_right, dropout_p, seed,
    SCORE: tl.constexpr, HAS_DENSE: tl.constexpr, HAS_WINDOW: tl.constexpr,
    HAS_DROPOUT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """p (dp - delta) of rows that were loaded."""
    b_dot = tl.dot(b_q, tl.trans(b_k), input_precision=PRECISION)
    b_s = pair_scores(
        SCORE, b_dot, b_i[:, None], b_j[None, :], scale, i_head, p_params, p_dense, s_dense,
        o_i[:, None], o_j[None, :], n, window_left, window_right, HAS_DENSE, HAS_WINDOW,
    )  # fmt: skip
    b_p = tl.exp2(b_s - b_lse[:, None])
    b_dp = tl.dot(b_g, tl.trans(b_v), input_precision=PRECISION)
    if HAS_DROPOUT:
        b_dp = b_dp * keep_factor(seed, (begin + o_i)[:, None], o_j[None, :], i_head, dropout_p)
    return b_p * (b_dp - b_delta[:, None])


@triton.jit
def tile_gradient(
    p_q, p_k, p_v, p_grad_out, p_lse, p_delta, p_positions, p_params, p_dense,
    s_qt, s_kt, s_vt, s_gt, s_dense, begin, n, o_i, o_j, i_head,
    scale, window_left, window_right, dropout_p, seed,
    SCORE: tl.constexpr, HAS_POSITIONS: tl.constexpr, HAS_DENSE: tl.constexpr,
    HAS_WINDOW: tl.constexpr, HAS_DROPOUT: tl.constexpr, HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """p (dp - delta) of queries o_i and keys o_j of a sequence, 0 where either is none; pointers
    are the head's."""
    o_d = tl.arange(0, BLOCK_D)
    b_q = load_rows(p_q, begin, o_i, n, o_d, s_qt, HEAD_DIM, BLOCK_D)
    b_k = load_rows(p_k, begin, o_j, n, o_d, s_kt, HEAD_DIM, BLOCK_D)
    b_v = load_rows(p_v, begin, o_j, n, o_d, s_vt, HEAD_DIM, BLOCK_D)
    b_g = load_rows(p_grad_out, begin, o_i, n, o_d, s_gt, HEAD_DIM, BLOCK_D)
    b_i = places_of(p_positions, begin, o_i, n, HAS_POSITIONS)
    b_j = places_of(p_positions, begin, o_j, n, HAS_POSITIONS)
    b_lse = load_lse(p_lse, begin, o_i, n)
    b_delta = tl.load(p_delta + begin + o_i, mask=o_i < n, other=0.0)
    return pair_gradient(
        b_q, b_k, b_v, b_g, b_i, b_j, b_lse, b_delta, p_params, p_dense, s_dense, begin, n, o_i,
        o_j, i_head, scale, window_left, window_right, dropout_p, seed,
        SCORE, HAS_DENSE, HAS_WINDOW, HAS_DROPOUT, PRECISION,
    )  # fmt: skip
