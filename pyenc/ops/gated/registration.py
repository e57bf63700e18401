"""The gated activation as registered ops, through the C++ kernels or Triton's, and Triton's of it
behind its linear layer.

Shapes: T rows, C channels, F columns; any leading axes stand for T.
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
    return cpu if backend == "cpu" else triton_launch.module_for("gated")


# ---- gate and value apart ---------------------------------------------------------------------


@kernel_op("pyenc::gated_activation")
def _apart_op(gate: Tensor, value: Tensor, activation: str, backend: str) -> Tensor:
    """gate, value (..., F): (..., F), contiguous."""
    out = _launchers(backend).forward(rows_in_place(gate), rows_in_place(value), activation)
    return out.view(gate.shape)


@_apart_op.register_fake
def _(gate: Tensor, value: Tensor, activation: str, backend: str) -> Tensor:
    return gate.new_empty(gate.shape)


@kernel_op("pyenc::gated_activation_backward")
def _apart_backward_op(
    grad_out: Tensor, gate: Tensor, value: Tensor, activation: str, backend: str
) -> tuple[Tensor, Tensor]:
    grads = gate.new_empty(gate.shape), value.new_empty(value.shape)
    _launchers(backend).backward(
        *map(rows_in_place, (grad_out, gate, value)), activation, *map(as_rows, grads)
    )
    return grads


@_apart_backward_op.register_fake
def _(
    grad_out: Tensor, gate: Tensor, value: Tensor, activation: str, backend: str
) -> tuple[Tensor, Tensor]:
    return gate.new_empty(gate.shape), value.new_empty(value.shape)


def _apart_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    gate, value, ctx.activation, ctx.backend = inputs
    ctx.save_for_backward(gate, value)


def _apart_backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
    grads = torch.ops.pyenc.gated_activation_backward(
        grad_out, *ctx.saved_tensors, ctx.activation, ctx.backend
    )
    return (*grads, None, None)


_apart_op.register_autograd(_apart_backward, setup_context=_apart_setup)


# ---- halves of one tensor ---------------------------------------------------------------------


def _halves(x: Tensor, gate_first: bool) -> tuple[Tensor, Tensor]:
    first, second = x.chunk(2, dim=-1)
    return (first, second) if gate_first else (second, first)


@kernel_op("pyenc::gated_halves")
def _halves_op(x: Tensor, activation: str, gate_first: bool, backend: str) -> Tensor:
    """x (..., 2F), gate and value side by side: (..., F)."""
    gate, value = _halves(rows_in_place(x), gate_first)
    out = _launchers(backend).forward(gate, value, activation)
    return out.view(*x.shape[:-1], x.shape[-1] // 2)


@_halves_op.register_fake
def _(x: Tensor, activation: str, gate_first: bool, backend: str) -> Tensor:
    return x.new_empty((*x.shape[:-1], x.shape[-1] // 2))


@kernel_op("pyenc::gated_halves_backward")
def _halves_backward_op(
    grad_out: Tensor, x: Tensor, activation: str, gate_first: bool, backend: str
) -> Tensor:
    rows = rows_in_place(x)
    grad = rows.new_empty(rows.shape)
    _launchers(backend).backward(
        rows_in_place(grad_out), *_halves(rows, gate_first), activation, *_halves(grad, gate_first)
    )
    return grad.view(x.shape)


@_halves_backward_op.register_fake
def _(grad_out: Tensor, x: Tensor, activation: str, gate_first: bool, backend: str) -> Tensor:
    return x.new_empty(x.shape)


def _halves_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, ctx.activation, ctx.gate_first, ctx.backend = inputs
    ctx.save_for_backward(x)


def _halves_backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
    grad = torch.ops.pyenc.gated_halves_backward(
        grad_out, *ctx.saved_tensors, ctx.activation, ctx.gate_first, ctx.backend
    )
    return grad, None, None, None


_halves_op.register_autograd(_halves_backward, setup_context=_halves_setup)


# ---- behind its linear layer, in one kernel ---------------------------------------------------


@kernel_op("pyenc::gated_linear")
def _linear_op(
    x: Tensor, weight: Tensor, bias: Tensor | None, activation: str, gate_first: bool
) -> Tensor:
    """x (..., C), weight (2F, C), bias (2F,): (..., F)."""
    out: Tensor = _launchers("triton").linear_forward(
        *_product(x, weight, bias), activation, gate_first
    )
    return out.view(*x.shape[:-1], weight.shape[0] // 2)


@_linear_op.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor | None, activation: str, gate_first: bool) -> Tensor:
    return x.new_empty((*x.shape[:-1], weight.shape[0] // 2))


@kernel_op("pyenc::gated_linear_backward")
def _linear_backward_op(
    grad_out: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, activation: str,
    gate_first: bool,
) -> Tensor:  # fmt: skip
    """The gradient of x W^T + b, (T, 2F): the product is made once more, not kept."""
    grad: Tensor = _launchers("triton").linear_backward(
        rows_in_place(grad_out), *_product(x, weight, bias), activation, gate_first
    )
    return grad


@_linear_backward_op.register_fake
def _(
    grad_out: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, activation: str,
    gate_first: bool,
) -> Tensor:  # fmt: skip
    return x.new_empty((math.prod(x.shape[:-1]), weight.shape[0]))


def _product(
    x: Tensor, weight: Tensor, bias: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """As the kernels read it."""
    return rows_in_place(x), rows_in_place(weight), None if bias is None else bias.contiguous()


def _linear_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, bias, ctx.activation, ctx.gate_first = inputs
    ctx.save_for_backward(x, weight, bias)


def _linear_backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
    x, weight, bias = ctx.saved_tensors
    need_x, need_weight, need_bias, *_ = ctx.needs_input_grad
    grad = torch.ops.pyenc.gated_linear_backward(
        grad_out, x, weight, bias, ctx.activation, ctx.gate_first
    )
    return (
        (grad @ weight).view(x.shape) if need_x else None,
        grad.t() @ as_rows(x) if need_weight else None,
        grad.sum(0) if need_bias else None,
        None,
        None,
    )


_linear_op.register_autograd(_linear_backward, setup_context=_linear_setup)
