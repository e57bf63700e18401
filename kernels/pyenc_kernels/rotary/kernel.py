"""Rotary position embedding, one pass over memory: the kernel, which is its own backward.

Su et al., arXiv 2104.09864. A rotation's transpose is the rotation back, so that the gradient is
the same kernel with the other sign. Computed in float32 and rounded once. A program turns several
heads of a token by one row of the tables: of a head in half precision those are twice its bytes.

Shapes: T packed tokens, H heads, D head dim, P positions; HALF is D/2.
Names: p_ pointer, b_ block value, o_ offsets, m_ mask, s_ stride, n_ count.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def turns(p_cos, p_sin, p_positions, o_t, m_t, o_d, m_d, n_positions, HALF: tl.constexpr):
    """cos and sin (BLOCK_T, 1, BLOCK_D) of tokens o_t, by the rows of tables (P, D/2) that their
    positions say.

    A position that the tables have not ends in an assertion, as in torch's own gather; nothing is
    read for it.
    """
    b_position = tl.load(p_positions + o_t, mask=m_t, other=0).to(tl.int64)
    m_position = (b_position >= 0) & (b_position < n_positions)
    tl.device_assert(m_position, "a position is beyond the tables of cos and sin", mask=m_t)
    o_row = b_position[:, None, None] * HALF + o_d
    m_row = (m_t & m_position)[:, None, None] & m_d
    b_cos = tl.load(p_cos + o_row, mask=m_row, other=0.0)
    b_sin = tl.load(p_sin + o_row, mask=m_row, other=0.0)
    return b_cos, b_sin


@triton.jit(do_not_specialize=["n_tokens", "n_positions"])
def rotary_turn(
    p_x, p_cos, p_sin, p_positions, p_out, s_t, s_h, n_tokens, n_heads, n_positions,
    BACK: tl.constexpr, HALF: tl.constexpr,
    BLOCK_T: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Program (blocks of T, blocks of H): out (T, H, D), contiguous, the pairs (d, d + D/2) of x
    turned by the row of cos and sin (P, D/2) that the token's position says; BLOCK_D holds HALF."""
    o_t = tl.program_id(0).to(tl.int64) * BLOCK_T + tl.arange(0, BLOCK_T)
    o_h = tl.program_id(1) * BLOCK_H + tl.arange(0, BLOCK_H)[None, :, None]
    o_d = tl.arange(0, BLOCK_D)[None, None, :]
    m_t = o_t < n_tokens
    m_d = o_d < HALF
    b_cos, b_sin = turns(p_cos, p_sin, p_positions, o_t, m_t, o_d, m_d, n_positions, HALF)
    if BACK:
        b_sin = -b_sin
    o_t = o_t[:, None, None]
    mask = m_t[:, None, None] & (o_h < n_heads) & m_d
    p_x += o_t * s_t + o_h.to(tl.int64) * s_h + o_d
    b_first = tl.load(p_x, mask=mask, other=0.0).to(tl.float32)
    b_second = tl.load(p_x + HALF, mask=mask, other=0.0).to(tl.float32)
    p_out += (o_t * n_heads + o_h) * (2 * HALF) + o_d
    b_turned = b_first * b_cos - b_second * b_sin
    tl.store(p_out, b_turned.to(p_out.dtype.element_ty), mask=mask)
    b_turned = b_second * b_cos + b_first * b_sin
    tl.store(p_out + HALF, b_turned.to(p_out.dtype.element_ty), mask=mask)
