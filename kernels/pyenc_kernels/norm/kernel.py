"""Residual addition and norm, LayerNorm or RMSNorm, one pass over memory each way: the kernels.

Ba et al., arXiv 1607.06450; Zhang & Sennrich, arXiv 1910.07467. Computed in float32. A program
holds whole rows, so that the mean is taken off before the squares are summed. The parameters'
gradients meet in a fixed order, without atomics: the same call gives the same bits.

Shapes: T rows, C columns, P programs of the backward.
Names: p_ pointer, b_ block value, o_ offsets, m_ mask, s_ stride, i_ program index, n_ count; share
is 1 / C.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def norm_of_rows(
    b_x, p_weight, p_bias, o_c, m_c, share, eps, RMS: tl.constexpr, HAS_BIAS: tl.constexpr,
    PLUS_ONE: tl.constexpr,
):  # fmt: skip
    """(norm (BLOCK_T, BLOCK_C), mean (BLOCK_T,), one over the deviation) of whole rows in float32,
    zeros where m_c (1, BLOCK_C) is not."""
    b_mean = tl.zeros([b_x.shape[0]], tl.float32)
    if not RMS:
        b_mean = tl.sum(b_x, 1) * share
        b_x = tl.where(m_c, b_x - b_mean[:, None], 0.0)
        # Of numbers far from zero that mean is off by its own rounding: what is left is taken off.
        b_rest = tl.sum(b_x, 1) * share
        b_x = tl.where(m_c, b_x - b_rest[:, None], 0.0)
        b_mean += b_rest
    b_deviation = tl.sqrt_rn(tl.sum(b_x * b_x, 1) * share + eps)
    b_scale = tl.div_rn(tl.zeros([b_x.shape[0]], tl.float32) + 1.0, b_deviation)
    b_weight = tl.load(p_weight + o_c, mask=m_c, other=0.0).to(tl.float32)
    if PLUS_ONE:
        b_weight += 1.0
    b_out = b_x * b_scale[:, None]
    b_out *= b_weight
    if HAS_BIAS:
        b_out += tl.load(p_bias + o_c, mask=m_c, other=0.0).to(tl.float32)
    return b_out, b_mean, b_scale


@triton.jit(do_not_specialize=["n_rows"])
def norm_forward(
    p_x, p_residual, p_weight, p_bias, p_total, p_normed, p_stats, s_x, s_residual,
    n_rows, n_columns, share, eps,
    RMS: tl.constexpr, HAS_RESIDUAL: tl.constexpr, HAS_BIAS: tl.constexpr, PLUS_ONE: tl.constexpr,
    BLOCK_T: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Program (blocks of T,): total and normed (T, C), contiguous, and stats (T, 2), the mean and
    one over the deviation; BLOCK_C holds all of C."""
    o_t = tl.program_id(0).to(tl.int64) * BLOCK_T + tl.arange(0, BLOCK_T)
    o_c = tl.arange(0, BLOCK_C)[None, :]
    m_t = o_t < n_rows
    m_c = o_c < n_columns
    mask = m_t[:, None] & m_c
    o_out = o_t[:, None] * n_columns + o_c
    b_x = tl.load(p_x + o_t[:, None] * s_x + o_c, mask=mask, other=0.0).to(tl.float32)
    if HAS_RESIDUAL:
        o_residual = o_t[:, None] * s_residual + o_c
        b_x += tl.load(p_residual + o_residual, mask=mask, other=0.0).to(tl.float32)
        b_total = b_x.to(p_total.dtype.element_ty)
        tl.store(p_total + o_out, b_total, mask=mask)
        b_x = b_total.to(tl.float32)  # the norm is of the sum that is kept
    b_out, b_mean, b_scale = norm_of_rows(
        b_x, p_weight, p_bias, o_c, m_c, share, eps, RMS, HAS_BIAS, PLUS_ONE
    )
    tl.store(p_normed + o_out, b_out.to(p_normed.dtype.element_ty), mask=mask)
    tl.store(p_stats + 2 * o_t, b_mean, mask=m_t)
    tl.store(p_stats + 2 * o_t + 1, b_scale, mask=m_t)


@triton.jit(do_not_specialize=["n_rows"])
def norm_backward(
    p_grad_normed, p_grad_total, p_total, p_weight, p_stats, p_grad_x, p_partial,
    s_grad_normed, s_grad_total, s_total, n_rows, n_columns, share,
    RMS: tl.constexpr, HAS_GRAD_TOTAL: tl.constexpr, HAS_BIAS: tl.constexpr,
    PLUS_ONE: tl.constexpr, STAGES: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Program (P,): every P-th block of rows of grad_x (T, C), and what those add to the gradients
    of weight and bias, partial (2, P, C); BLOCK_C holds all of C. STAGES: blocks of rows on their
    way through shared memory at a time, so that memory is read while others are computed."""
    i_program = tl.program_id(0)
    n_programs = tl.num_programs(0)
    o_c = tl.arange(0, BLOCK_C)[None, :]
    m_c = o_c < n_columns
    b_weight = tl.load(p_weight + o_c, mask=m_c, other=0.0).to(tl.float32)
    if PLUS_ONE:
        b_weight += 1.0
    b_grad_weight = tl.zeros([BLOCK_T, BLOCK_C], tl.float32)
    b_grad_bias = tl.zeros([BLOCK_T, BLOCK_C], tl.float32)
    n_blocks = (n_rows + BLOCK_T - 1) // BLOCK_T
    for block in tl.range(i_program, n_blocks, n_programs, num_stages=STAGES):
        o_t = (block * BLOCK_T + tl.arange(0, BLOCK_T)).to(tl.int64)
        m_t = o_t < n_rows
        mask = m_t[:, None] & m_c
        b_grad = tl.load(
            p_grad_normed + o_t[:, None] * s_grad_normed + o_c, mask=mask, other=0.0
        ).to(tl.float32)
        b_unit = tl.load(p_total + o_t[:, None] * s_total + o_c, mask=mask, other=0.0)
        b_unit = b_unit.to(tl.float32)
        b_scale = tl.load(p_stats + 2 * o_t + 1, mask=m_t, other=0.0)
        b_weighted = b_grad * b_weight
        if RMS:
            b_unit *= b_scale[:, None]
            b_by_one = tl.zeros([BLOCK_T], tl.float32)
        else:
            b_mean = tl.load(p_stats + 2 * o_t, mask=m_t, other=0.0)
            b_unit = tl.where(mask, (b_unit - b_mean[:, None]) * b_scale[:, None], 0.0)
            # As in the forward: the mean as it is stored may be off by more than a unit's rounding.
            b_rest = tl.sum(b_unit, 1) * share
            b_unit = tl.where(mask, b_unit - b_rest[:, None], 0.0)
            b_by_one = tl.sum(b_weighted, 1) * share
        b_by_unit = tl.sum(b_weighted * b_unit, 1) * share
        b_grad_weight += b_grad * b_unit
        if HAS_BIAS:
            b_grad_bias += b_grad
        b_grad_x = b_weighted - b_by_one[:, None] - b_unit * b_by_unit[:, None]
        b_grad_x *= b_scale[:, None]
        if HAS_GRAD_TOTAL:
            o_grad_total = o_t[:, None] * s_grad_total + o_c
            b_grad_x += tl.load(p_grad_total + o_grad_total, mask=mask, other=0.0).to(tl.float32)
        o_out = o_t[:, None] * n_columns + o_c
        tl.store(p_grad_x + o_out, b_grad_x.to(p_grad_x.dtype.element_ty), mask=mask)
    o_c = tl.arange(0, BLOCK_C)
    o_partial = i_program.to(tl.int64) * n_columns + o_c
    tl.store(p_partial + o_partial, tl.sum(b_grad_weight, 0), mask=o_c < n_columns)
    if HAS_BIAS:
        o_partial += n_programs.to(tl.int64) * n_columns
        tl.store(p_partial + o_partial, tl.sum(b_grad_bias, 0), mask=o_c < n_columns)


@triton.jit(do_not_specialize=["n_programs"])
def norm_parameters(
    p_partial, p_grad_weight, p_grad_bias, n_programs, n_columns,
    HAS_BIAS: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Program (blocks of C,): grad_weight and grad_bias (C,), the sums of partial (2, P, C)."""
    o_c = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)[None, :]
    m_c = o_c < n_columns
    b_grad_weight = tl.zeros([BLOCK_P, BLOCK_C], tl.float32)
    b_grad_bias = tl.zeros([BLOCK_P, BLOCK_C], tl.float32)
    p_partial_bias = p_partial + n_programs.to(tl.int64) * n_columns
    first = n_programs * 0
    while first < n_programs:
        o_p = first + tl.arange(0, BLOCK_P)[:, None]
        mask = (o_p < n_programs) & m_c
        o_partial = o_p.to(tl.int64) * n_columns + o_c
        b_grad_weight += tl.load(p_partial + o_partial, mask=mask, other=0.0)
        if HAS_BIAS:
            b_grad_bias += tl.load(p_partial_bias + o_partial, mask=mask, other=0.0)
        first += BLOCK_P
    b_sum = tl.sum(b_grad_weight, 0)[None, :].to(p_grad_weight.dtype.element_ty)
    tl.store(p_grad_weight + o_c, b_sum, mask=m_c)
    if HAS_BIAS:
        b_sum = tl.sum(b_grad_bias, 0)[None, :].to(p_grad_bias.dtype.element_ty)
        tl.store(p_grad_bias + o_c, b_sum, mask=m_c)
