"""Norm of heads and rotary position embedding, one pass over memory each way: the kernels.

RMSNorm of each head of queries and keys (Zhang & Sennrich, arXiv 1910.07467; of heads: Henry et
al., arXiv 2010.04245), then turned by its token's position (Su et al., arXiv 2104.09864). Computed
in float32 and rounded once. A program holds whole heads, as halves, whose numbers turn as pairs;
the backward takes their scale again from the numbers themselves, so that the forward keeps nothing.
The parameters' gradients meet in a fixed order, without atomics: the same call gives the same bits.

Shapes: T packed tokens, H heads, D head dim, P positions; HALF is D/2.
Names: p_ pointer, b_ block value, o_ offsets, m_ mask, s_ stride, i_ program index, n_ count; share
is 1 / D.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ..rotary.kernel import turns


@triton.jit
def gains(p_weight, p_k_weight, m_k, o_d, m_d, PLUS_ONE: tl.constexpr):
    """What a half (1, BLOCK_H, BLOCK_D) of each head is multiplied by: the heads of m_k by
    k_weight."""
    b_gain = tl.load(p_weight + o_d, mask=m_d, other=0.0).to(tl.float32)
    b_k_gain = tl.load(p_k_weight + o_d, mask=m_d, other=0.0).to(tl.float32)
    b_gain = tl.where(m_k, b_k_gain, b_gain)
    if PLUS_ONE:
        b_gain += 1.0
    return b_gain


@triton.jit
def scale_of(b_first, b_second, share, eps):
    """One over the root mean square of each head (BLOCK_T, BLOCK_H, 1)."""
    b_squares = tl.sum(b_first * b_first, 2) + tl.sum(b_second * b_second, 2)
    b_root = tl.sqrt_rn(b_squares * share + eps)
    return tl.div_rn(tl.zeros_like(b_root) + 1.0, b_root)[:, :, None]


@triton.jit(do_not_specialize=["n_tokens", "n_positions"])
def norm_rotary_forward(
    p_x, p_weight, p_k_weight, p_cos, p_sin, p_positions, p_out, s_t, s_h,
    n_tokens, n_heads, n_q_heads, n_positions, share, eps,
    PLUS_ONE: tl.constexpr, HALF: tl.constexpr,
    BLOCK_T: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Program (blocks of T, blocks of H): out (T, H, D), contiguous; BLOCK_D holds HALF."""
    o_t = tl.program_id(0).to(tl.int64) * BLOCK_T + tl.arange(0, BLOCK_T)
    o_h = tl.program_id(1) * BLOCK_H + tl.arange(0, BLOCK_H)[None, :, None]
    o_d = tl.arange(0, BLOCK_D)[None, None, :]
    m_t = o_t < n_tokens
    m_d = o_d < HALF
    m_k = o_h >= n_q_heads
    b_cos, b_sin = turns(p_cos, p_sin, p_positions, o_t, m_t, o_d, m_d, n_positions, HALF)
    o_t = o_t[:, None, None]
    mask = m_t[:, None, None] & (o_h < n_heads) & m_d
    p_x += o_t * s_t + o_h.to(tl.int64) * s_h + o_d
    b_first = tl.load(p_x, mask=mask, other=0.0).to(tl.float32)
    b_second = tl.load(p_x + HALF, mask=mask, other=0.0).to(tl.float32)
    b_scale = scale_of(b_first, b_second, share, eps)
    b_first *= b_scale * gains(p_weight, p_k_weight, m_k, o_d, m_d, PLUS_ONE)
    b_second *= b_scale * gains(p_weight + HALF, p_k_weight + HALF, m_k, o_d, m_d, PLUS_ONE)
    p_out += (o_t * n_heads + o_h) * (2 * HALF) + o_d
    b_turned = b_first * b_cos - b_second * b_sin
    tl.store(p_out, b_turned.to(p_out.dtype.element_ty), mask=mask)
    b_turned = b_second * b_cos + b_first * b_sin
    tl.store(p_out + HALF, b_turned.to(p_out.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["n_tokens", "n_positions"])
def norm_rotary_backward(
    p_grad_out, p_x, p_weight, p_k_weight, p_cos, p_sin, p_positions, p_grad_x, p_partial,
    s_grad_t, s_grad_h, s_t, s_h, n_tokens, n_heads, n_q_heads, n_positions, share, eps,
    PLUS_ONE: tl.constexpr, HALF: tl.constexpr, HAS_K: tl.constexpr,
    BLOCK_T: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Program (P, blocks of H): every P-th block of tokens of grad_x (T, H, D), contiguous, and
    what those add to the gradients of weight and k_weight, partial (2, P * blocks of H, D), without
    k_weight (1, ...)."""
    o_h = tl.program_id(1) * BLOCK_H + tl.arange(0, BLOCK_H)[None, :, None]
    o_d = tl.arange(0, BLOCK_D)[None, None, :]
    m_d = o_d < HALF
    m_k = o_h >= n_q_heads
    o_x, o_grad = o_h.to(tl.int64) * s_h + o_d, o_h.to(tl.int64) * s_grad_h + o_d
    b_gain_1 = gains(p_weight, p_k_weight, m_k, o_d, m_d, PLUS_ONE)
    b_gain_2 = gains(p_weight + HALF, p_k_weight + HALF, m_k, o_d, m_d, PLUS_ONE)
    b_sum_1 = tl.zeros([BLOCK_T, BLOCK_H, BLOCK_D], tl.float32)
    b_sum_2 = tl.zeros([BLOCK_T, BLOCK_H, BLOCK_D], tl.float32)
    first = tl.program_id(0).to(tl.int64) * BLOCK_T
    while first < n_tokens:
        o_t = first + tl.arange(0, BLOCK_T)
        m_t = o_t < n_tokens
        m_th = m_t[:, None, None] & (o_h < n_heads)
        mask = m_th & m_d
        b_cos, b_sin = turns(p_cos, p_sin, p_positions, o_t, m_t, o_d, m_d, n_positions, HALF)
        o_t = o_t[:, None, None]
        b_grad_1 = tl.load(p_grad_out + o_t * s_grad_t + o_grad, mask=mask, other=0.0)
        b_grad_1 = b_grad_1.to(tl.float32)
        b_grad_2 = tl.load(p_grad_out + o_t * s_grad_t + o_grad + HALF, mask=mask, other=0.0)
        b_grad_2 = b_grad_2.to(tl.float32)
        # Turned back: of the norm, before the rotation.
        b_back = b_grad_1 * b_cos + b_grad_2 * b_sin
        b_grad_2 = b_grad_2 * b_cos - b_grad_1 * b_sin
        b_grad_1 = b_back
        b_unit_1 = tl.load(p_x + o_t * s_t + o_x, mask=mask, other=0.0).to(tl.float32)
        b_unit_2 = tl.load(p_x + o_t * s_t + o_x + HALF, mask=mask, other=0.0).to(tl.float32)
        # With an eps of 0 that of what is no head is infinite, and would be in the sums.
        b_scale = tl.where(m_th, scale_of(b_unit_1, b_unit_2, share, eps), 0.0)
        b_unit_1 *= b_scale
        b_unit_2 *= b_scale
        b_sum_1 += b_grad_1 * b_unit_1
        b_sum_2 += b_grad_2 * b_unit_2
        b_grad_1 *= b_gain_1
        b_grad_2 *= b_gain_2
        b_by_unit = tl.sum(b_grad_1 * b_unit_1, 2) + tl.sum(b_grad_2 * b_unit_2, 2)
        b_by_unit = (b_by_unit * share)[:, :, None]
        o_out = (o_t * n_heads + o_h) * (2 * HALF) + o_d
        b_grad_1 = (b_grad_1 - b_unit_1 * b_by_unit) * b_scale
        tl.store(p_grad_x + o_out, b_grad_1.to(p_grad_x.dtype.element_ty), mask=mask)
        b_grad_2 = (b_grad_2 - b_unit_2 * b_by_unit) * b_scale
        tl.store(p_grad_x + o_out + HALF, b_grad_2.to(p_grad_x.dtype.element_ty), mask=mask)
        first += tl.num_programs(0) * BLOCK_T
    o_d = tl.arange(0, BLOCK_D)
    m_d = o_d < HALF
    i_program = tl.program_id(0) * tl.num_programs(1) + tl.program_id(1)
    p_partial += i_program.to(tl.int64) * (2 * HALF) + o_d
    tl.store(p_partial, tl.sum(tl.sum(tl.where(m_k, 0.0, b_sum_1), 0), 0), mask=m_d)
    tl.store(p_partial + HALF, tl.sum(tl.sum(tl.where(m_k, 0.0, b_sum_2), 0), 0), mask=m_d)
    if HAS_K:
        n_programs = tl.num_programs(0) * tl.num_programs(1)
        p_partial += n_programs.to(tl.int64) * (2 * HALF)
        tl.store(p_partial, tl.sum(tl.sum(tl.where(m_k, b_sum_1, 0.0), 0), 0), mask=m_d)
        tl.store(p_partial + HALF, tl.sum(tl.sum(tl.where(m_k, b_sum_2, 0.0), 0), 0), mask=m_d)
