"""Residual addition and norm as a registered op, through the C++ kernels.

Shapes: C channels; any leading axes.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ..launch import as_rows
from ..registered import cpu_op
from .cpu import backward, forward


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
