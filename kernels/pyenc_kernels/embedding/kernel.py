"""Rows of up to three tables, gathered, summed and normed, written once: the kernel.

Each sum is rounded to the tables' dtype before the next, as if it had been written and read, and
the norm is that of `norm/kernel.py`: so the bits are those of gathers, sums and a norm apart.

Shapes: T rows, C columns.
Names: p_ pointer, b_ block value, o_ offsets, m_ mask, s_ stride, n_ count; share is 1 / C.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ..norm.kernel import norm_of_rows


@triton.jit
def rows_by_id(p_ids, p_table, s_table, n_table, o_t, m_t, o_c, m_c):
    """(BLOCK_T, BLOCK_C) float32: of each row the one of the table that its id says.

    An id that the table has not ends in an assertion, as in torch's own gather; nothing is read
    for it.
    """
    b_id = tl.load(p_ids + o_t, mask=m_t, other=0).to(tl.int64)
    m_id = (b_id >= 0) & (b_id < n_table)
    tl.device_assert(m_id, "embedding_norm: an id is out of range", mask=m_t)
    mask = (m_t & m_id)[:, None] & m_c
    return tl.load(p_table + b_id[:, None] * s_table + o_c, mask=mask, other=0.0).to(tl.float32)


@triton.jit(do_not_specialize=["n_rows"])
def embedding_norm(
    p_ids, p_type_ids, p_position_ids, p_word, p_type, p_position, p_weight, p_bias, p_normed,
    s_word, s_type, s_position, n_rows, n_columns, n_words, n_types, n_positions, share, eps,
    HAS_TYPE: tl.constexpr, HAS_TYPE_IDS: tl.constexpr, HAS_POSITION: tl.constexpr,
    RMS: tl.constexpr, HAS_BIAS: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Program (blocks of T,): normed (T, C), contiguous; BLOCK_C holds all of C.

    Without HAS_TYPE_IDS every row is of the first type.
    """
    o_t = tl.program_id(0).to(tl.int64) * BLOCK_T + tl.arange(0, BLOCK_T)
    o_c = tl.arange(0, BLOCK_C)[None, :]
    m_t = o_t < n_rows
    m_c = o_c < n_columns
    b_x = rows_by_id(p_ids, p_word, s_word, n_words, o_t, m_t, o_c, m_c)
    if HAS_TYPE:
        if HAS_TYPE_IDS:
            b_x += rows_by_id(p_type_ids, p_type, s_type, n_types, o_t, m_t, o_c, m_c)
        else:
            b_x += tl.load(p_type + o_c, mask=m_c, other=0.0).to(tl.float32)
        b_x = b_x.to(p_normed.dtype.element_ty).to(tl.float32)
    if HAS_POSITION:
        b_x += rows_by_id(p_position_ids, p_position, s_position, n_positions, o_t, m_t, o_c, m_c)
        b_x = b_x.to(p_normed.dtype.element_ty).to(tl.float32)
    b_out, _, _ = norm_of_rows(b_x, p_weight, p_bias, o_c, m_c, share, eps, RMS, HAS_BIAS, False)
    o_out = o_t[:, None] * n_columns + o_c
    tl.store(p_normed + o_out, b_out.to(p_normed.dtype.element_ty), mask=m_t[:, None] & m_c)
