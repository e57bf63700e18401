"""Gated activation: the launchers of the kernels, tensors in, tensors out.

Shapes: T rows, F columns; of `linear_forward`, x has C columns.
"""

from __future__ import annotations

from typing import Any

import triton
from torch import Tensor

from ..configs import Config, config_for, multiprocessors
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
    gate: Tensor, value: Tensor | None, activation: str, config: Config | None = None
) -> Tensor:
    """activation(gate) * value, or activation(gate) alone: (T, F), contiguous.

    gate, value (T, F) float32, bfloat16 or float16, their columns contiguous (halves of one tensor
    are read where they are); activation: one of ACTIVATIONS.

    Nothing is checked here, and nothing waits for the device; pyenc.ops.gated_activation checks.
    """
    out = gate.new_empty(gate.shape)
    if out.numel() == 0:
        return out
    grid, sizes = _launch("gated_forward", gate, config)
    gated_forward[grid](
        gate, gate if value is None else value, out, gate.stride(0),
        0 if value is None else value.stride(0), *gate.shape,
        ACTIVATION=activation, HAS_VALUE=value is not None, **sizes,
    )  # fmt: skip
    return out


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
    config: Config | None = None,
) -> Tensor:  # fmt: skip
    """activation(gate) * value of the halves of x weight^T + bias: (T, F), contiguous.

    x (T, C), weight (2F, C), bias (2F,) or None, of one dtype, float32, bfloat16 or float16, their
    columns contiguous. Sums are in float32, products of float32 never in TF32; rounded once.

    Nothing is checked here, and nothing waits for the device; pyenc.ops.gated_linear checks.
    """
    out = x.new_empty((x.shape[0], weight.shape[0] // 2))
    if out.numel() == 0:
        return out
    (tiles,), sizes = _launch_linear("gated_linear_forward", x, weight, config)
    at_once = multiprocessors(x.device) * max(1, WARPS // sizes["num_warps"])
    gated_linear_forward[(min(tiles, at_once),)](
        x, weight, weight if bias is None else bias, out, x.stride(0), weight.stride(0),
        *out.shape, x.shape[1],
        ACTIVATION=activation, GATE_FIRST=gate_first, HAS_BIAS=bias is not None, **sizes,
    )  # fmt: skip
    return out


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
    grid, sizes = _launch_linear("gated_linear_backward", x, weight, config)
    gated_linear_backward[grid](
        grad_out, x, weight, weight if bias is None else bias, grad,
        grad_out.stride(0), x.stride(0), weight.stride(0), *grad_out.shape, x.shape[1],
        ACTIVATION=activation, GATE_FIRST=gate_first, HAS_BIAS=bias is not None, **sizes,
    )  # fmt: skip
    return grad


def _launch_linear(
    kernel: str, x: Tensor, weight: Tensor, config: Config | None
) -> tuple[tuple[int], dict[str, Any]]:
    """As `_launch`: a block is of rows and of columns of each half."""
    rows, columns = x.shape[0], weight.shape[0] // 2
    config = config or config_for(kernel, x, columns, rows)
    turn = TURN_BYTES // x.element_size()
    tiles = triton.cdiv(rows, config.block_m) * triton.cdiv(columns, config.block_n)
    sizes = {"GROUP": GROUP, "BLOCK_T": config.block_m, "BLOCK_F": config.block_n, "BLOCK_C": turn}
    return (tiles,), {"EVEN": x.shape[1] % turn == 0, **sizes, **config.launch}


def _launch(
    kernel: str, gate: Tensor, config: Config | None
) -> tuple[tuple[int, int], dict[str, Any]]:
    """(grid, sizes of a tile and of a program)."""
    rows, columns = gate.shape
    config = config or config_for(kernel, gate, columns, rows)
    block_t, block_f = config.block(columns)
    grid = triton.cdiv(rows, block_t), triton.cdiv(columns, block_f)
    return grid, {"BLOCK_T": block_t, "BLOCK_F": block_f, **config.launch}
