"""Residual addition and norm as a registered op, through the C++ kernels or Triton's.

Shapes: C channels; any leading axes.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from .. import triton_launch
from ..launch import as_rows, rows_in_place
from ..registered import kernel_op
from . import cpu


def _launchers(backend: str) -> Any:
    """Those of a compiled backend: both have the same `forward` and `backward`."""
    return cpu if backend == "cpu" else triton_launch.module_for("norm")


def _rows(x: Tensor, backend: str) -> Tensor:
    """(T, C) as a backend reads it: Triton's takes any distance between rows."""
    return as_rows(x).contiguous() if backend == "cpu" else rows_in_place(x)


def _form(plus_one: bool) -> dict[str, bool]:
    return {"plus_one": True} if plus_one else {}


@kernel_op("pyenc::add_norm")
def _norm_op(
    x: Tensor, residual: Tensor | None, weight: Tensor, bias: Tensor | None, eps: float, rms: bool,
    plus_one: bool, backend: str,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """(normed, total or an empty tensor without a residual, stats). plus_one is for Triton's
    kernels; for "cpu" it is done."""
    other = None if residual is None else _rows(residual, backend)
    normed, total, stats = _launchers(backend).forward(
        _rows(x, backend), other, weight.contiguous(), bias, eps, rms, **_form(plus_one)
    )
    whole = normed.new_empty(0) if total is None else total.view(x.shape)
    return normed.view(x.shape), whole, stats


@_norm_op.register_fake
def _(
    x: Tensor, residual: Tensor | None, weight: Tensor, bias: Tensor | None, eps: float, rms: bool,
    plus_one: bool, backend: str,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    dtype = x.dtype if residual is None else torch.promote_types(x.dtype, residual.dtype)
    normed = x.new_empty(x.shape, dtype=dtype)
    total = normed.new_empty(0 if residual is None else x.shape)
    return normed, total, x.new_empty((math.prod(x.shape[:-1]), 2), dtype=torch.float32)


@kernel_op("pyenc::add_norm_backward")
def _norm_backward_op(
    grad_normed: Tensor,
    grad_total: Tensor | None,
    total: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stats: Tensor,
    eps: float,
    rms: bool,
    plus_one: bool,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """(gradient of x + residual, of weight, of bias or an empty tensor without one)."""
    grad_x, grad_weight, grad_bias = _launchers(backend).backward(
        _rows(grad_normed, backend),
        None if grad_total is None else _rows(grad_total, backend),
        _rows(total, backend), weight.contiguous(), bias, stats, eps, rms, **_form(plus_one),
    )  # fmt: skip
    empty = stats.new_empty(0)
    return grad_x.view(total.shape), grad_weight, empty if grad_bias is None else grad_bias


@_norm_backward_op.register_fake
def _(
    grad_normed: Tensor, grad_total: Tensor | None, total: Tensor, weight: Tensor,
    bias: Tensor | None, stats: Tensor, eps: float, rms: bool, plus_one: bool,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    grad_bias = stats.new_empty(0) if bias is None else bias.new_empty(bias.shape)
    return total.new_empty(total.shape), weight.new_empty(weight.shape), grad_bias


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, residual, weight, bias, *ctx.rest = inputs
    ctx.with_residual = residual is not None
    ctx.dtypes = x.dtype, None if residual is None else residual.dtype
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
    grad, grad_weight, grad_bias = torch.ops.pyenc.add_norm_backward(
        grad_normed, grad_total, total, weight, bias, stats, *ctx.rest
    )
    grad_x, grad_residual = (None if dtype is None else grad.to(dtype) for dtype in ctx.dtypes)
    grad_bias = None if bias is None else grad_bias
    return grad_x, grad_residual, grad_weight, grad_bias, *[None] * 4


_norm_op.register_autograd(_backward, setup_context=_setup)
