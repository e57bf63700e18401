"""The gated feed-forward's first half in one kernel: x W^T + b, split, activation(gate) * value.

A program multiplies its rows of x by the gate's rows of a weight and by the value's, which lie in
it as checkpoints store them, and writes the F columns of what is gated: the 2F between are never in
memory. The backward makes them once more and writes their gradient.

Shapes: T rows, C columns of x, F columns of the result.
Names: p_ pointer, b_ block value, o_ offsets, m_ mask, s_ stride, i_ program index, n_ count.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .kernel import activate, activate_slope


@triton.jit
def _tile_in_groups(
    i_program, n_rows, n_columns, GROUP: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_F: tl.constexpr
):
    """Rows (BLOCK_T,) and columns (BLOCK_F,) of a tile.

    Tiles go down GROUP blocks of rows before the next columns: those that run together share few
    blocks of x and of the weight, which then stay in the cache.
    """
    n_blocks = tl.cdiv(n_rows, BLOCK_T)
    n_of_group = GROUP * tl.cdiv(n_columns, BLOCK_F)
    first = i_program // n_of_group * GROUP
    height = tl.minimum(n_blocks - first, GROUP)
    i_in_group = i_program % n_of_group
    o_t = (first + i_in_group % height) * BLOCK_T + tl.arange(0, BLOCK_T)
    o_f = i_in_group // height * BLOCK_F + tl.arange(0, BLOCK_F)
    return o_t, o_f


@triton.jit
def _gate_and_value(
    p_x, p_weight, p_bias, o_t, o_f, s_x, s_weight, n_rows, n_columns, n_inner,
    GATE_FIRST: tl.constexpr, HAS_BIAS: tl.constexpr, EVEN: tl.constexpr,
    BLOCK_T: tl.constexpr, BLOCK_F: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """x W^T + b of a tile, both halves (BLOCK_T, BLOCK_F) float32; EVEN: BLOCK_C divides C.

    One product: rows of the weight's two halves take turns in its tile, so that a column of either
    half lies beside the other's in the same thread, and taking them apart moves nothing.
    """
    # What lies outside reads the last row again, and is not written: no mask in the loop.
    o_x = tl.minimum(o_t, n_rows - 1).to(tl.int64)[:, None] * s_x
    o_first = tl.minimum(o_f, n_columns - 1)
    o_both = tl.reshape(tl.join(o_first, o_first + n_columns), (2 * BLOCK_F,))
    o_c = tl.arange(0, BLOCK_C)
    p_x += o_x + o_c[None, :]
    p_weight += o_both.to(tl.int64)[None, :] * s_weight + o_c[:, None]
    b_both = tl.zeros([BLOCK_T, 2 * BLOCK_F], tl.float32)
    for c in range(0, n_inner, BLOCK_C):
        if EVEN:
            b_x = tl.load(p_x)
            b_weight = tl.load(p_weight)
        else:
            m_c = o_c < n_inner - c
            b_x = tl.load(p_x, mask=m_c[None, :], other=0.0)
            b_weight = tl.load(p_weight, mask=m_c[:, None], other=0.0)
        b_both = tl.dot(b_x, b_weight, b_both, input_precision="ieee")
        p_x += BLOCK_C
        p_weight += BLOCK_C
    b_first, b_second = tl.split(tl.reshape(b_both, (BLOCK_T, BLOCK_F, 2)))
    if HAS_BIAS:
        m_f = o_f < n_columns
        b_first += tl.load(p_bias + o_f, mask=m_f, other=0.0).to(tl.float32)[None, :]
        p_bias += n_columns
        b_second += tl.load(p_bias + o_f, mask=m_f, other=0.0).to(tl.float32)[None, :]
    if GATE_FIRST:
        return b_first, b_second
    else:
        return b_second, b_first


@triton.jit(do_not_specialize=["n_rows"])
def gated_linear_forward(
    p_x, p_weight, p_bias, p_out, s_x, s_weight, n_rows, n_columns, n_inner,
    ACTIVATION: tl.constexpr, GATE_FIRST: tl.constexpr, HAS_BIAS: tl.constexpr, EVEN: tl.constexpr,
    GROUP: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_F: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Program (some,): out (T, F), contiguous, a tile after the other, each with the first loads of
    the next under way."""
    dtype = p_out.dtype.element_ty
    n_tiles = tl.cdiv(n_rows, BLOCK_T) * tl.cdiv(n_columns, BLOCK_F)
    for i_tile in tl.range(tl.program_id(0), n_tiles, tl.num_programs(0), flatten=True):
        o_t, o_f = _tile_in_groups(i_tile, n_rows, n_columns, GROUP, BLOCK_T, BLOCK_F)
        b_gate, b_value = _gate_and_value(
            p_x, p_weight, p_bias, o_t, o_f, s_x, s_weight, n_rows, n_columns, n_inner,
            GATE_FIRST, HAS_BIAS, EVEN, BLOCK_T, BLOCK_F, BLOCK_C,
        )  # fmt: skip
        b_out = activate(b_gate, ACTIVATION, dtype != tl.float32) * b_value
        mask = (o_t < n_rows)[:, None] & (o_f < n_columns)[None, :]
        p_tile = p_out + o_t.to(tl.int64)[:, None] * n_columns + o_f[None, :]
        tl.store(p_tile, b_out.to(dtype), mask=mask)


@triton.jit(do_not_specialize=["n_rows"])
def gated_linear_backward(
    p_grad_out, p_x, p_weight, p_bias, p_grad, s_grad_out, s_x, s_weight,
    n_rows, n_columns, n_inner,
    ACTIVATION: tl.constexpr, GATE_FIRST: tl.constexpr, HAS_BIAS: tl.constexpr, EVEN: tl.constexpr,
    GROUP: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_F: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Program (tiles,): the gradient of x W^T + b (T, 2F), contiguous, in the weight's order."""
    o_t, o_f = _tile_in_groups(tl.program_id(0), n_rows, n_columns, GROUP, BLOCK_T, BLOCK_F)
    b_gate, b_value = _gate_and_value(
        p_x, p_weight, p_bias, o_t, o_f, s_x, s_weight, n_rows, n_columns, n_inner,
        GATE_FIRST, HAS_BIAS, EVEN, BLOCK_T, BLOCK_F, BLOCK_C,
    )  # fmt: skip
    o_t = o_t.to(tl.int64)[:, None]
    o_f = o_f[None, :]
    mask = (o_t < n_rows) & (o_f < n_columns)
    b_grad = tl.load(p_grad_out + o_t * s_grad_out + o_f, mask=mask, other=0.0).to(tl.float32)
    half: tl.constexpr = p_grad.dtype.element_ty != tl.float32
    b_grad_gate = b_grad * b_value * activate_slope(b_gate, ACTIVATION, half)
    b_grad_value = b_grad * activate(b_gate, ACTIVATION, half)
    p_first = p_grad + o_t * (2 * n_columns) + o_f
    dtype = p_grad.dtype.element_ty
    if GATE_FIRST:
        tl.store(p_first, b_grad_gate.to(dtype), mask=mask)
        tl.store(p_first + n_columns, b_grad_value.to(dtype), mask=mask)
    else:
        tl.store(p_first, b_grad_value.to(dtype), mask=mask)
        tl.store(p_first + n_columns, b_grad_gate.to(dtype), mask=mask)
