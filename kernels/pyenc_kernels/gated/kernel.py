"""Gated activation, activation(gate) * value, one pass over memory each way: the kernels.

Shazeer, arXiv 2002.05202. Computed in float32 and rounded once; the backward recomputes the
activation, so that nothing but the inputs is kept.

Shapes: T rows, F columns. Names: p_ pointer, b_ block value, o_ offsets, m_ mask, s_ stride.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _tanh_argument(x):
    """2 u and its derivative by x, with u the argument of the tanh in GELU's approximation.

    Far out the tanh is 1 in float32, and x cubed would overflow.
    """
    x = tl.minimum(tl.maximum(x, -32.0), 32.0)
    square = x * x
    twice = 1.5957691216057308  # 2 sqrt(2 / pi)
    return twice * x * (1.0 + 0.044715 * square), twice * (1.0 + 0.134145 * square)


@triton.jit
def activate(x, ACTIVATION: tl.constexpr):
    """activation(x), float32."""
    if ACTIVATION == "gelu":
        return 0.5 * x * (1.0 + tl.erf(x * 0.7071067811865476))
    elif ACTIVATION == "gelu_tanh":
        argument, _ = _tanh_argument(x)
        return x * tl.sigmoid(argument)
    elif ACTIVATION == "silu":
        return x * tl.sigmoid(x)
    else:
        return tl.where(x <= 0.0, 0.0, x)  # a NaN stays one


@triton.jit
def activate_slope(x, ACTIVATION: tl.constexpr):
    """d activation / d x, float32."""
    if ACTIVATION == "gelu":
        density = 0.3989422804014327 * tl.exp(-0.5 * x * x)
        return 0.5 * (1.0 + tl.erf(x * 0.7071067811865476)) + x * density
    elif ACTIVATION == "gelu_tanh":
        argument, slope = _tanh_argument(x)
        share = tl.sigmoid(argument)
        return share + x * share * (1.0 - share) * slope
    elif ACTIVATION == "silu":
        share = tl.sigmoid(x)
        return share + x * share * (1.0 - share)
    else:
        return tl.where(x <= 0.0, 0.0, 1.0)


@triton.jit
def _tile(n_rows, n_columns, BLOCK_T: tl.constexpr, BLOCK_F: tl.constexpr):
    """Rows (BLOCK_T, 1), columns (1, BLOCK_F) and mask of a program's tile."""
    o_t = tl.program_id(0).to(tl.int64) * BLOCK_T + tl.arange(0, BLOCK_T)[:, None]
    o_f = tl.program_id(1) * BLOCK_F + tl.arange(0, BLOCK_F)[None, :]
    return o_t, o_f, (o_t < n_rows) & (o_f < n_columns)


@triton.jit(do_not_specialize=["n_rows"])
def gated_forward(
    p_gate, p_value, p_out, s_gate, s_value, n_rows, n_columns,
    ACTIVATION: tl.constexpr, HAS_VALUE: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_F: tl.constexpr,
):  # fmt: skip
    """Program (blocks of T, blocks of F): out (T, F), contiguous."""
    o_t, o_f, mask = _tile(n_rows, n_columns, BLOCK_T, BLOCK_F)
    b_out = activate(
        tl.load(p_gate + o_t * s_gate + o_f, mask=mask, other=0.0).to(tl.float32), ACTIVATION
    )
    if HAS_VALUE:
        b_out *= tl.load(p_value + o_t * s_value + o_f, mask=mask, other=0.0).to(tl.float32)
    tl.store(p_out + o_t * n_columns + o_f, b_out.to(p_out.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["n_rows"])
def gated_backward(
    p_grad_out, p_gate, p_value, p_grad_gate, p_grad_value,
    s_grad_out, s_gate, s_value, s_grad_gate, s_grad_value, n_rows, n_columns,
    ACTIVATION: tl.constexpr, HAS_VALUE: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_F: tl.constexpr,
):  # fmt: skip
    """Program (blocks of T, blocks of F): grad_gate and grad_value (T, F)."""
    o_t, o_f, mask = _tile(n_rows, n_columns, BLOCK_T, BLOCK_F)
    b_grad = tl.load(p_grad_out + o_t * s_grad_out + o_f, mask=mask, other=0.0).to(tl.float32)
    b_gate = tl.load(p_gate + o_t * s_gate + o_f, mask=mask, other=0.0).to(tl.float32)
    b_grad_gate = b_grad * activate_slope(b_gate, ACTIVATION)
    if HAS_VALUE:
        b_value = tl.load(p_value + o_t * s_value + o_f, mask=mask, other=0.0).to(tl.float32)
        b_grad_gate *= b_value
        b_grad_value = b_grad * activate(b_gate, ACTIVATION)
        p_grad_value += o_t * s_grad_value + o_f
        tl.store(p_grad_value, b_grad_value.to(p_grad_value.dtype.element_ty), mask=mask)
    p_grad_gate += o_t * s_grad_gate + o_f
    tl.store(p_grad_gate, b_grad_gate.to(p_grad_gate.dtype.element_ty), mask=mask)
