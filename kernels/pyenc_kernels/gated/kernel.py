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
def _normal_share(x, HALF: tl.constexpr):
    """Of a normal distribution what is not above x: Phi(x) = (1 + erf(x / sqrt 2)) / 2.

    HALF: for results in half precision, to 2^-16.8 of itself above -5.6, to 1e-13 below: the
    logarithm of the share beyond |x| is nearly a parabola, so a polynomial and one power of two
    give it, in half the instructions of an erf that is right to float32's last place. Behind a
    matrix product those are not hidden. Coefficients: least maximum of |error| on 0 to 5.6 by
    iterated weighted least squares; the last is negative, so that far out nothing is left.
    """
    if HALF:
        z = tl.abs(x)
        log = -1.6400987536543882e-06 * z + 5.7679329430374826e-05
        log = log * z - 0.0008992813613623821
        log = log * z + 0.00838276754506909
        log = log * z - 0.05369711675980954
        log = log * z - 0.45873882610071015
        log = log * z - 1.1511325798807575
        log = log * z - 1.0000076162718727
        beyond = tl.exp2(log)
        return tl.where(x < 0.0, beyond, 1.0 - beyond)
    else:
        return 0.5 * (1.0 + tl.erf(x * 0.7071067811865476))


@triton.jit
def activate(x, ACTIVATION: tl.constexpr, HALF: tl.constexpr):
    """activation(x), float32; HALF: the result will be rounded to half precision."""
    if ACTIVATION == "gelu":
        return x * _normal_share(x, HALF)
    elif ACTIVATION == "gelu_tanh":
        argument, _ = _tanh_argument(x)
        return x * tl.sigmoid(argument)
    elif ACTIVATION == "silu":
        return x * tl.sigmoid(x)
    else:
        return tl.where(x <= 0.0, 0.0, x)  # a NaN stays one


@triton.jit
def activate_slope(x, ACTIVATION: tl.constexpr, HALF: tl.constexpr):
    """d activation / d x, float32; HALF: as of `activate`."""
    if ACTIVATION == "gelu":
        density = 0.3989422804014327 * tl.exp(-0.5 * x * x)
        return _normal_share(x, HALF) + x * density
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
    b_gate = tl.load(p_gate + o_t * s_gate + o_f, mask=mask, other=0.0).to(tl.float32)
    b_out = activate(b_gate, ACTIVATION, p_out.dtype.element_ty != tl.float32)
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
    half: tl.constexpr = p_grad_gate.dtype.element_ty != tl.float32
    b_grad_gate = b_grad * activate_slope(b_gate, ACTIVATION, half)
    if HAS_VALUE:
        b_value = tl.load(p_value + o_t * s_value + o_f, mask=mask, other=0.0).to(tl.float32)
        b_grad_gate *= b_value
        b_grad_value = b_grad * activate(b_gate, ACTIVATION, half)
        p_grad_value += o_t * s_grad_value + o_f
        tl.store(p_grad_value, b_grad_value.to(p_grad_value.dtype.element_ty), mask=mask)
    p_grad_gate += o_t * s_grad_gate + o_f
    tl.store(p_grad_gate, b_grad_gate.to(p_grad_gate.dtype.element_ty), mask=mask)
