"""Residual addition and norm on the CPU through the C++ extension, and the registered op.

Shapes: C channels; any leading axes.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ..errors import InputError
from .launch import (
    DTYPE_CODES,
    as_rows,
    check_contiguous,
    check_dtype,
    check_like,
    module_for,
    pointer,
)
from .registered import cpu_op

OP = "add_norm"


def forward(
    x: Tensor, residual: Tensor | None, weight: Tensor, bias: Tensor | None, eps: float, rms: bool
) -> tuple[Tensor, Tensor | None, Tensor]:
    """(norm(x + residual), x + residual or None without one, stats (T, 2) float32).

    x, residual (T, C) float32, bfloat16 or float16; weight, bias (C,) float32; contiguous, on the
    CPU. The sum is rounded to x's dtype before its norm is taken in float32. The same bits for any
    number of threads. Raises InputError on arguments it cannot serve, BackendError without the
    extension.
    """
    call = _call(x, weight, bias, eps, rms)
    total = None
    if residual is not None:
        check_like(OP, "residual", residual, tuple(x.shape), x.dtype)
        check_contiguous(OP, residual=residual)
        total = torch.empty_like(x)
    normed = torch.empty_like(x)
    stats = x.new_empty((x.shape[0], 2), dtype=torch.float32)
    module_for(OP).norm_forward(
        *call, x.data_ptr(), pointer(residual), pointer(total), normed.data_ptr(), stats.data_ptr()
    )
    return normed, total, stats


def backward(
    grad_normed: Tensor,
    grad_total: Tensor | None,
    total: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stats: Tensor,
    eps: float,
    rms: bool,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """(gradient of x, which is the residual's too, of weight, of bias), all as `forward`'s.

    Sums over tokens run in a fixed order: the same bits for any number of threads.
    """
    call = _call(total, weight, bias, eps, rms)
    check_like(OP, "stats", stats, (total.shape[0], 2), torch.float32)
    for name, grad in (("grad_normed", grad_normed), ("grad_total", grad_total)):
        if grad is not None:
            check_like(OP, name, grad, tuple(total.shape), total.dtype)
    check_contiguous(OP, grad_normed=grad_normed, grad_total=grad_total, stats=stats)
    grad_x = torch.empty_like(total)
    grad_weight = torch.empty_like(weight)
    grad_bias = None if bias is None else torch.empty_like(bias)
    module_for(OP).norm_backward(
        *call, grad_normed.data_ptr(), pointer(grad_total), total.data_ptr(), stats.data_ptr(),
        grad_x.data_ptr(), grad_weight.data_ptr(), pointer(grad_bias),
    )  # fmt: skip
    return grad_x, grad_weight, grad_bias


def _call(
    x: Tensor, weight: Tensor, bias: Tensor | None, eps: float, rms: bool
) -> tuple[int, bool, int, int, float, int, int, int]:
    check_dtype(OP, "x", x)
    if x.ndim != 2 or weight.ndim != 1:
        raise InputError(
            f"{OP}: x must be (T, C) and weight (C,), got {tuple(x.shape)}, {tuple(weight.shape)}"
        )
    check_like(OP, "x", x, (x.shape[0], weight.shape[0]), x.dtype)
    check_like(OP, "weight", weight, (x.shape[1],), torch.float32)
    if bias is not None:
        check_like(OP, "bias", bias, (x.shape[1],), torch.float32)
    check_contiguous(OP, x=x, weight=weight, bias=bias)
    threads = torch.get_num_threads()
    return (
        DTYPE_CODES[x.dtype], rms, *x.shape, eps, weight.data_ptr(), pointer(bias), threads,
    )  # fmt: skip


@cpu_op("pyenc::add_norm_cpu")
def _norm_op(
    x: Tensor, residual: Tensor | None, weight: Tensor, bias: Tensor | None, eps: float, rms: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """(normed, total or an empty tensor without a residual, stats)."""
    rows = as_rows(x).contiguous()
    other = None if residual is None else as_rows(residual).contiguous()
    normed, total, stats = forward(rows, other, weight.contiguous(), bias, eps, rms)
    whole = x.new_empty(0) if total is None else total.view(x.shape)
    return normed.view(x.shape), whole, stats


@_norm_op.register_fake
def _(
    x: Tensor, residual: Tensor | None, weight: Tensor, bias: Tensor | None, eps: float, rms: bool
) -> tuple[Tensor, Tensor, Tensor]:
    rows = math.prod(x.shape[:-1])
    total = x.new_empty(0) if residual is None else x.new_empty(x.shape)
    return x.new_empty(x.shape), total, x.new_empty((rows, 2), dtype=torch.float32)


@cpu_op("pyenc::add_norm_cpu_backward")
def _norm_backward_op(
    grad_normed: Tensor,
    grad_total: Tensor | None,
    total: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stats: Tensor,
    eps: float,
    rms: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    grad_x, grad_weight, grad_bias = backward(
        as_rows(grad_normed).contiguous(),
        None if grad_total is None else as_rows(grad_total).contiguous(),
        as_rows(total).contiguous(), weight.contiguous(), bias, stats, eps, rms,
    )  # fmt: skip
    empty = stats.new_empty(0)
    return grad_x.view(total.shape), grad_weight, empty if grad_bias is None else grad_bias


@_norm_backward_op.register_fake
def _(
    grad_normed: Tensor, grad_total: Tensor | None, total: Tensor, weight: Tensor,
    bias: Tensor | None, stats: Tensor, eps: float, rms: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    grad_bias = stats.new_empty(0) if bias is None else weight.new_empty(weight.shape)
    return total.new_empty(total.shape), weight.new_empty(weight.shape), grad_bias


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, residual, weight, bias, ctx.eps, ctx.rms = inputs
    ctx.with_residual = residual is not None
    ctx.save_for_backward(output[1] if ctx.with_residual else x, weight, bias, output[2])
    ctx.mark_non_differentiable(output[2])
    ctx.set_materialize_grads(False)


def _backward(
    ctx: Any, grad_normed: Tensor | None, grad_total: Tensor | None, _: Tensor | None
) -> tuple[Tensor | None, ...]:
    total, weight, bias, stats = ctx.saved_tensors
    if not ctx.with_residual:
        grad_total = None
    if grad_normed is None:
        grad_normed = torch.zeros_like(total)
    grad_x, grad_weight, grad_bias = torch.ops.pyenc.add_norm_cpu_backward(
        grad_normed, grad_total, total, weight, bias, stats, ctx.eps, ctx.rms
    )
    grad_residual = grad_x if ctx.with_residual else None
    return grad_x, grad_residual, grad_weight, None if bias is None else grad_bias, None, None


_norm_op.register_autograd(_backward, setup_context=_setup)
