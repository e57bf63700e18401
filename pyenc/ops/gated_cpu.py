"""The gated activation on the CPU through the C++ extension, and its registered ops.

Shapes: T rows, F columns; any leading axes stand for T.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..errors import InputError
from .launch import DTYPE_CODES, as_rows, check_dtype, check_like, check_memory, module_for
from .registered import cpu_op

OP = "gated_activation"

ACTIVATION_CODES = {"gelu": 0, "gelu_tanh": 1, "silu": 2, "relu": 3}
"""The codes of csrc/activation.h."""


def _rows(name: str, x: Tensor) -> Tensor:
    """(T, F), its columns contiguous; a view wherever that is what it is."""
    check_dtype(OP, name, x)
    check_memory(OP, **{name: x})
    rows = as_rows(x)
    return rows if rows.stride(-1) == 1 or rows.shape[-1] <= 1 else rows.contiguous()


def _place(rows: Tensor | None) -> tuple[int, int]:
    return (0, 0) if rows is None else (rows.data_ptr(), rows.stride(0))


def _call(like: Tensor, activation: str) -> tuple[int, int, int, int, int]:
    if activation not in ACTIVATION_CODES:
        known = ", ".join(ACTIVATION_CODES)
        raise InputError(f"{OP}: unknown activation {activation!r}; known: {known}")
    code = ACTIVATION_CODES[activation]
    return DTYPE_CODES[like.dtype], code, *like.shape, torch.get_num_threads()


def forward(gate: Tensor, value: Tensor | None, activation: str) -> Tensor:
    """activation(gate) * value, or activation(gate) alone: contiguous, of gate's shape and dtype.

    gate and value of equal shape and dtype (float32, bfloat16 or float16), on the CPU; halves of
    one tensor are read where they are. Computed in float32, rounded once; the same bits for any
    number of threads. Raises InputError on arguments it cannot serve, BackendError without the
    extension.
    """
    if value is not None:
        check_like(OP, "value", value, tuple(gate.shape), gate.dtype)
    g, v = _rows("gate", gate), None if value is None else _rows("value", value)
    out = g.new_empty(g.shape)
    module_for(OP).gated_forward(*_call(g, activation), _place(g), _place(v), _place(out))
    return out.view(gate.shape)


def backward(
    grad_out: Tensor,
    gate: Tensor,
    value: Tensor | None,
    activation: str,
    grad_gate: Tensor,
    grad_value: Tensor | None,
) -> None:
    """Write the gradients of `forward` into grad_gate and grad_value, (T, F) each."""
    check_like(OP, "grad_out", grad_out, tuple(gate.shape), gate.dtype)
    g, v = _rows("gate", gate), None if value is None else _rows("value", value)
    for name, given, like in (("grad_gate", grad_gate, g), ("grad_value", grad_value, v)):
        if (given is None) != (like is None):
            raise InputError(f"{OP}: {name} must be given exactly where there is a value")
        if given is None or like is None:
            continue
        check_like(OP, name, given, tuple(like.shape), like.dtype)
        if given.stride(-1) != 1 and given.shape[-1] > 1:
            raise InputError(f"{OP}: the columns of {name} must be contiguous")
    go = _rows("grad_out", grad_out)
    module_for(OP).gated_backward(
        *_call(g, activation), _place(go), _place(g), _place(v), _place(grad_gate),
        _place(grad_value),
    )  # fmt: skip


# ---- gate and value apart ---------------------------------------------------------------------


@cpu_op("pyenc::gated_cpu")
def _apart_op(gate: Tensor, value: Tensor, activation: str) -> Tensor:
    return forward(gate, value, activation)


@_apart_op.register_fake
def _(gate: Tensor, value: Tensor, activation: str) -> Tensor:
    return gate.new_empty(gate.shape)


@cpu_op("pyenc::gated_cpu_backward")
def _apart_backward_op(
    grad_out: Tensor, gate: Tensor, value: Tensor, activation: str
) -> tuple[Tensor, Tensor]:
    grads = gate.new_empty(gate.shape), value.new_empty(value.shape)
    backward(grad_out, gate, value, activation, *map(as_rows, grads))
    return grads


@_apart_backward_op.register_fake
def _(grad_out: Tensor, gate: Tensor, value: Tensor, activation: str) -> tuple[Tensor, Tensor]:
    return gate.new_empty(gate.shape), value.new_empty(value.shape)


def _apart_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    gate, value, ctx.activation = inputs
    ctx.save_for_backward(gate, value)


def _apart_backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
    grads = torch.ops.pyenc.gated_cpu_backward(grad_out, *ctx.saved_tensors, ctx.activation)
    return (*grads, None)


_apart_op.register_autograd(_apart_backward, setup_context=_apart_setup)


# ---- halves of one tensor ---------------------------------------------------------------------


def _halves(x: Tensor, gate_first: bool) -> tuple[Tensor, Tensor]:
    first, second = x.chunk(2, dim=-1)
    return (first, second) if gate_first else (second, first)


@cpu_op("pyenc::gated_halves_cpu")
def _halves_op(x: Tensor, activation: str, gate_first: bool) -> Tensor:
    """x (..., 2F), gate and value side by side: (..., F)."""
    gate, value = _halves(as_rows(x), gate_first)
    return forward(gate, value, activation).view(*x.shape[:-1], x.shape[-1] // 2)


@_halves_op.register_fake
def _(x: Tensor, activation: str, gate_first: bool) -> Tensor:
    return x.new_empty((*x.shape[:-1], x.shape[-1] // 2))


@cpu_op("pyenc::gated_halves_cpu_backward")
def _halves_backward_op(grad_out: Tensor, x: Tensor, activation: str, gate_first: bool) -> Tensor:
    rows = as_rows(x)
    grad = rows.new_empty(rows.shape)
    backward(
        as_rows(grad_out), *_halves(rows, gate_first), activation,
        *_halves(grad, gate_first),
    )  # fmt: skip
    return grad.view(x.shape)


@_halves_backward_op.register_fake
def _(grad_out: Tensor, x: Tensor, activation: str, gate_first: bool) -> Tensor:
    return x.new_empty(x.shape)


def _halves_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, ctx.activation, ctx.gate_first = inputs
    ctx.save_for_backward(x)


def _halves_backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
    grad = torch.ops.pyenc.gated_halves_cpu_backward(
        grad_out, *ctx.saved_tensors, ctx.activation, ctx.gate_first
    )
    return grad, None, None


_halves_op.register_autograd(_halves_backward, setup_context=_halves_setup)
