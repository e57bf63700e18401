"""Gated activation: the launchers of the kernels, tensors in, tensors out.

Shapes: T rows, F columns; of `linear_forward`, x has C columns.
"""

from __future__ import annotations

from typing import Any

import triton
from torch import Tensor

from ..configs import Config, config_for, multiprocessors
from ..launching import Known, Launch, Plans
from .kernel import gated_backward, gated_forward
from .linear_kernel import gated_linear_backward, gated_linear_forward

ACTIVATIONS = ("gelu", "gelu_tanh", "silu", "relu")
TURN_BYTES = 128
"""Of a row of x and of the weight that a turn of the product's loop takes: what lies side by side
in shared memory as the matrix units read it."""
WARPS = 8
"""Of the programs that a multiprocessor runs of the product at a time, together."""
GROUP = 8
"""Blocks of rows that are gone through before the next columns."""


def forward(
    gate: Tensor, value: Tensor | None, activation: str, config: Config | None = None,
    known: Known | None = None,
) -> Tensor:  # fmt: skip
    """activation(gate) * value, or activation(gate) alone: (T, F), contiguous.

    gate, value (T, F) float32, bfloat16 or float16, their columns contiguous (halves of one tensor
    are read where they are); activation: one of ACTIVATIONS; known: of calls that have a value
    where this has one.

    Nothing is checked here, and nothing waits for the device; pyenc.ops.gated_activation checks.
    """
    rows, columns = shape = gate.shape
    out = gate.new_empty(shape)
    if not (rows and columns):
        return out
    tensors = gate, gate if value is None else value, out
    key = gated_forward, columns, activation
    if known and (launch := known.get(key)) is not None:
        launch(tensors)
        return out
    config = config or config_for("gated_forward", gate, columns, rows)
    plan = _FORWARD.of(config, columns, activation, value is not None)
    grid = -(-rows // plan.constants["BLOCK_T"]), -(-columns // plan.constants["BLOCK_F"])
    numbers = gate.stride(0), 0 if value is None else value.stride(0), rows, columns
    plan(grid, tensors, numbers)
    if known is not None:
        known[key] = Launch(plan, grid, numbers)
    return out


def _forward_constants(
    config: Config, columns: int, activation: str, has_value: bool
) -> dict[str, Any]:
    block_t, block_f = config.block(columns)
    return {
        "ACTIVATION": activation, "HAS_VALUE": has_value, "BLOCK_T": block_t, "BLOCK_F": block_f
    }  # fmt: skip


_FORWARD = Plans(gated_forward, _forward_constants)


def backward(
    grad_out: Tensor, gate: Tensor, value: Tensor | None, activation: str,
    grad_gate: Tensor, grad_value: Tensor | None, config: Config | None = None,
) -> None:  # fmt: skip
    """Write the gradients of `forward` into grad_gate and grad_value, (T, F) each, any row stride.

    grad_out (T, F), columns contiguous; grad_value exactly where there is a value.
    """
    if gate.numel() == 0:
        return
    grid, sizes = _launch("gated_backward", gate, config)
    if value is None or grad_value is None:
        tensors, strides = (gate, grad_gate, grad_gate), (0, grad_gate.stride(0), 0)
    else:
        tensors = value, grad_gate, grad_value
        strides = value.stride(0), grad_gate.stride(0), grad_value.stride(0)
    gated_backward[grid](
        grad_out, gate, *tensors, grad_out.stride(0), gate.stride(0), *strides, *gate.shape,
        ACTIVATION=activation, HAS_VALUE=value is not None, **sizes,
    )  # fmt: skip


def linear_forward(
    x: Tensor, weight: Tensor, bias: Tensor | None, activation: str, gate_first: bool,
    config: Config | None = None, known: Known | None = None,
) -> Tensor:  # fmt: skip
    """activation(gate) * value of the halves of x weight^T + bias: (T, F), contiguous.

    x (T, C), weight (2F, C), bias (2F,) or None, of one dtype, float32, bfloat16 or float16, their
    columns contiguous. Sums are in float32, products of float32 never in TF32; rounded once.
    known: of calls with as wide an x and contiguous weights, of any F.

    Nothing is checked here, and nothing waits for the device; pyenc.ops.gated_linear checks.
    """
    (rows, inner), columns = x.shape, weight.shape[0] // 2
    out = x.new_empty((rows, columns))
    if not (rows and columns):
        return out
    tensors = x, weight, weight if bias is None else bias, out
    key = gated_linear_forward, columns, activation, gate_first, bias is None
    if known and (launch := known.get(key)) is not None:
        launch(tensors)
        return out
    config = config or config_for("gated_linear_forward", x, columns, rows)
    form = inner, x.element_size(), activation, gate_first, bias is not None
    plan = _LINEAR_FORWARD.of(config, *form)
    tiles = -(-rows // config.block_m) * -(-columns // config.block_n)
    at_once = multiprocessors(x.device) * max(1, WARPS // config.num_warps)
    grid = (min(tiles, at_once),)
    numbers = x.stride(0), weight.stride(0), rows, columns, inner
    plan(grid, tensors, numbers)
    if known is not None:
        known[key] = Launch(plan, grid, numbers)
    return out


def _linear_constants(
    config: Config, inner: int, element_size: int, activation: str, gate_first: bool, has_bias: bool
) -> dict[str, Any]:
    """A block is of rows and of columns of each half."""
    turn = TURN_BYTES // element_size
    return {
        "ACTIVATION": activation, "GATE_FIRST": gate_first, "HAS_BIAS": has_bias,
        "EVEN": inner % turn == 0, "GROUP": GROUP,
        "BLOCK_T": config.block_m, "BLOCK_F": config.block_n, "BLOCK_C": turn,
    }  # fmt: skip


_LINEAR_FORWARD = Plans(gated_linear_forward, _linear_constants)


def linear_backward(
    grad_out: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, activation: str,
    gate_first: bool, config: Config | None = None,
) -> Tensor:  # fmt: skip
    """The gradient of x weight^T + bias, (T, 2F): times weight it is x's, and so on.

    grad_out (T, F), columns contiguous; the rest as `linear_forward` was given it.
    """
    grad = x.new_empty((x.shape[0], weight.shape[0]))
    if grad.numel() == 0:
        return grad
    rows, columns = grad_out.shape
    config = config or config_for("gated_linear_backward", x, columns, rows)
    form = x.shape[1], x.element_size(), activation, gate_first, bias is not None
    plan = _LINEAR_BACKWARD.of(config, *form)
    tiles = triton.cdiv(rows, config.block_m) * triton.cdiv(columns, config.block_n)
    plan(
        (tiles,), (grad_out, x, weight, weight if bias is None else bias, grad),
        (grad_out.stride(0), x.stride(0), weight.stride(0), rows, columns, x.shape[1]),
    )  # fmt: skip
    return grad


_LINEAR_BACKWARD = Plans(gated_linear_backward, _linear_constants)


def _launch(
    kernel: str, gate: Tensor, config: Config | None
) -> tuple[tuple[int, int], dict[str, Any]]:
    """(grid, sizes of a tile and of a program)."""
    rows, columns = gate.shape
    config = config or config_for(kernel, gate, columns, rows)
    block_t, block_f = config.block(columns)
    grid = triton.cdiv(rows, block_t), triton.cdiv(columns, block_f)
    return grid, {"BLOCK_T": block_t, "BLOCK_F": block_f, **config.launch}
