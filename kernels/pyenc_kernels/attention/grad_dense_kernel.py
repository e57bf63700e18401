"""Gradient of a dense attention bias: each tile of it gathers ds from all sequences, in order.

The bias is indexed by place in the sequence, so that every sequence longer than the tile's corner
adds to it. Without atomics: one program a tile, which recomputes what it needs.

Shapes and names: as in forward_kernel.py.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .grad_queries_kernel import rows_of_head
from .tile_gradient import tile_gradient


@triton.jit(
    do_not_specialize=["n_tokens", "n_sequences", "window_left", "window_right", "seed", "side"]
)
def attention_grad_dense(
    p_q, p_k, p_v, p_grad_out, p_rows, p_grad, p_cu, p_positions, p_params, p_dense,
    s_qt, s_qh, s_kt, s_kh, s_vt, s_vh, s_gt, s_gh, s_params, s_dense_h, s_dense,
    side, n_tokens, n_sequences, n_heads, scale, window_left, window_right, dropout_p, seed,
    SCORE: tl.constexpr, AFFINE_FROM: tl.constexpr, PLAIN: tl.constexpr,
    HAS_POSITIONS: tl.constexpr, HAS_DENSE: tl.constexpr, HAS_WINDOW: tl.constexpr,
    HAS_DROPOUT: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Program (tiles of rows, tiles of columns, H): p_grad (H, side, side), contiguous."""
    i_first = tl.program_id(0) * BLOCK_M
    j_first = tl.program_id(1) * BLOCK_N
    i_head = tl.program_id(2)
    o_i = i_first + tl.arange(0, BLOCK_M)
    o_j = j_first + tl.arange(0, BLOCK_N)
    p_q += i_head.to(tl.int64) * s_qh
    p_k += i_head.to(tl.int64) * s_kh
    p_v += i_head.to(tl.int64) * s_vh
    p_grad_out += i_head.to(tl.int64) * s_gh
    p_params += i_head * s_params
    p_dense += i_head.to(tl.int64) * s_dense_h
    p_lse, p_delta = rows_of_head(p_rows, i_head, n_heads, n_tokens)
    b_grad = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for i_sequence in range(n_sequences):
        begin = tl.load(p_cu + i_sequence).to(tl.int64)
        n = (tl.load(p_cu + i_sequence + 1).to(tl.int64) - begin).to(tl.int32)
        if (i_first < n) & (j_first < n):
            b_grad += tile_gradient(
                p_q, p_k, p_v, p_grad_out, p_lse, p_delta, p_positions, p_params, p_dense,
                s_qt, s_kt, s_vt, s_gt, s_dense, begin, n, o_i, o_j, i_head,
                scale, window_left, window_right, dropout_p, seed,
                SCORE, HAS_POSITIONS, HAS_DENSE, HAS_WINDOW, HAS_DROPOUT, HEAD_DIM, BLOCK_D,
                PRECISION,
            )  # fmt: skip
    p_out = p_grad + i_head.to(tl.int64) * side * side + o_i[:, None].to(tl.int64) * side
    m_out = (o_i[:, None] < side) & (o_j[None, :] < side)
    tl.store(p_out + o_j[None, :], b_grad.to(p_grad.dtype.element_ty), mask=m_out)
