"""Mean of each segment of packed tokens: the kernels.

The tokens are cut into chunks of CHUNK, the slots of slots.py, so that a long segment is shared
among many programs. Sums meet in slot order, without atomics: the same call gives the same bits.

Shapes: T packed tokens, B segments, C channels, S chunk slots.
Names: p_ pointer, b_ block value, o_ offsets, m_ mask, i_ program index, n_ count.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ..slots import sequence_of_slot


@triton.jit
def _tokens_of_slot(p_cu, i_slot, n_segments, CHUNK: tl.constexpr):
    """The segment that owns a slot, and the slot's tokens [first, last); none if it is unused."""
    i_segment, begin, end, i_chunk = sequence_of_slot(p_cu, i_slot, n_segments, CHUNK)
    first = begin + i_chunk * CHUNK
    return i_segment, first, tl.minimum(first + CHUNK, end)


@triton.jit(do_not_specialize=["n_segments"])
def segment_mean_sum(
    p_x, p_cu, p_weights, p_partial, p_partial_weight, n_segments, n_channels,
    HAS_WEIGHTS: tl.constexpr, CHUNK: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Program (S blocks of C,): the weighted sum of one chunk, p_partial (S, C). Blocks take turns:
    programs that run together read whole rows."""
    n_blocks = tl.cdiv(n_channels, BLOCK_C)
    i_slot = tl.program_id(0) // n_blocks
    i_block = tl.program_id(0) % n_blocks
    _, first, last = _tokens_of_slot(p_cu, i_slot, n_segments, CHUNK)
    if first < last:  # nobody reads what an unused slot would hold
        o_c = i_block * BLOCK_C + tl.arange(0, BLOCK_C)
        m_c = o_c < n_channels
        b_sum = tl.zeros([BLOCK_C], tl.float32)
        b_weight_sum = tl.zeros([BLOCK_T], tl.float32)
        for step in range(CHUNK // BLOCK_T):
            o_t = first + step * BLOCK_T + tl.arange(0, BLOCK_T)
            m_t = o_t < last
            b_x = tl.load(
                p_x + o_t[:, None] * n_channels + o_c[None, :],
                mask=m_t[:, None] & m_c[None, :],
                other=0.0,
            ).to(tl.float32)  # (BLOCK_T, BLOCK_C)
            if HAS_WEIGHTS:
                b_weight = tl.load(p_weights + o_t, mask=m_t, other=0.0).to(tl.float32)
                b_x = b_x * b_weight[:, None]
            else:
                b_weight = m_t.to(tl.float32)
            b_sum += tl.sum(b_x, 0)
            b_weight_sum += b_weight
        tl.store(p_partial + i_slot.to(tl.int64) * n_channels + o_c, b_sum, mask=m_c)
        tl.store(p_partial_weight + i_slot, tl.sum(b_weight_sum, 0), mask=i_block == 0)


@triton.jit
def segment_mean_finish(
    p_partial, p_partial_weight, p_cu, p_out, p_stats, n_channels, smallest_norm,
    NORMALIZE: tl.constexpr, CHUNK: tl.constexpr, BLOCK_S: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Program (B,): adds the sums of one segment's chunks and divides; BLOCK_C holds all of C."""
    i_segment = tl.program_id(0).to(tl.int64)
    begin = tl.load(p_cu + i_segment).to(tl.int64)
    end = tl.load(p_cu + i_segment + 1).to(tl.int64)
    slot = begin // CHUNK + i_segment
    slots_end = slot + (end - begin + CHUNK - 1) // CHUNK
    o_c = tl.arange(0, BLOCK_C)
    m_c = o_c < n_channels
    b_sum = tl.zeros([BLOCK_C], tl.float32)
    weight_sum = tl.sum(tl.zeros([BLOCK_S], tl.float32), 0)
    while slot < slots_end:
        # A block at a time: summing in a tree keeps the rounding of a long segment small.
        o_s = slot + tl.arange(0, BLOCK_S)
        m_s = o_s < slots_end
        b_partial = tl.load(
            p_partial + o_s[:, None] * n_channels + o_c[None, :],
            mask=m_s[:, None] & m_c[None, :],
            other=0.0,
        )  # (BLOCK_S, BLOCK_C)
        b_sum += tl.sum(b_partial, 0)
        weight_sum += tl.sum(tl.load(p_partial_weight + o_s, mask=m_s, other=0.0), 0)
        slot += BLOCK_S
    has_weight = weight_sum != 0
    # Without weight there is no mean: zeros, whatever the tokens hold.
    # Rounded once each: the plain division and root may be off by two of the last place.
    weight = tl.zeros([BLOCK_C], tl.float32) + tl.where(has_weight, weight_sum, 1.0)
    b_out = tl.where(has_weight, tl.div_rn(b_sum, weight), 0.0)
    norm = weight_sum * 0.0
    if NORMALIZE:
        norm = tl.sqrt_rn(tl.sum(b_out * b_out, 0))
        # Written so that a NaN stays one.
        length = tl.where(norm < smallest_norm, smallest_norm, norm)
        b_out = tl.div_rn(b_out, tl.zeros([BLOCK_C], tl.float32) + length)
    tl.store(p_out + i_segment * n_channels + o_c, b_out, mask=m_c)
    tl.store(p_stats + 2 * i_segment, weight_sum)
    tl.store(p_stats + 2 * i_segment + 1, norm)


@triton.jit(do_not_specialize=["n_segments"])
def segment_mean_backward(
    p_grad_out, p_x, p_cu, p_weights, p_out, p_stats, p_grad_x, p_grad_weights,
    n_segments, n_channels, smallest_norm,
    HAS_WEIGHTS: tl.constexpr, NORMALIZE: tl.constexpr, WANT_X: tl.constexpr,
    WANT_WEIGHTS: tl.constexpr, CHUNK: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Program (S,): the gradients of one chunk's tokens and weights; BLOCK_C holds all of C."""
    i_slot = tl.program_id(0)
    i_segment, first, last = _tokens_of_slot(p_cu, i_slot, n_segments, CHUNK)
    o_c = tl.arange(0, BLOCK_C)
    m_c = o_c < n_channels
    o_row = i_segment.to(tl.int64) * n_channels + o_c
    b_grad = tl.load(p_grad_out + o_row, mask=m_c, other=0.0)
    b_mean = tl.load(p_out + o_row, mask=m_c, other=0.0)
    weight_sum = tl.load(p_stats + 2 * i_segment)
    if NORMALIZE:
        # y = m / max(|m|, eps): its gradient g becomes (g - y (y.g)) / |m|, or g / eps below eps.
        norm = tl.load(p_stats + 2 * i_segment + 1)
        below = norm < smallest_norm
        length = tl.where(below, smallest_norm, norm)
        along = tl.where(below, 0.0, tl.sum(b_grad * b_mean, 0))
        b_grad = (b_grad - along * b_mean) / length
        b_mean = b_mean * length
    has_weight = weight_sum != 0
    b_grad = tl.where(has_weight, b_grad / tl.where(has_weight, weight_sum, 1.0), 0.0)
    for step in range(CHUNK // BLOCK_T):
        o_t = first + step * BLOCK_T + tl.arange(0, BLOCK_T)
        m_t = o_t < last
        o_tc = o_t[:, None] * n_channels + o_c[None, :]
        m_tc = m_t[:, None] & m_c[None, :]
        if WANT_X:
            b_weight = m_t.to(tl.float32)
            if HAS_WEIGHTS:
                b_weight = tl.load(p_weights + o_t, mask=m_t, other=0.0).to(tl.float32)
            b_grad_x = b_weight[:, None] * b_grad[None, :]  # (BLOCK_T, BLOCK_C)
            tl.store(p_grad_x + o_tc, b_grad_x.to(p_grad_x.dtype.element_ty), mask=m_tc)
        if WANT_WEIGHTS:
            b_x = tl.load(p_x + o_tc, mask=m_tc, other=0.0).to(tl.float32)
            # The mean is taken off each channel and not off the sum, where the two would cancel.
            b_grad_weight = tl.sum((b_x - b_mean[None, :]) * b_grad[None, :], 1)
            tl.store(p_grad_weights + o_t, b_grad_weight, mask=m_t)
