"""Gated activation: the launchers of the kernels, tensors in, tensors out.

Shapes: T rows, F columns.
"""

from __future__ import annotations

from typing import Any

import triton
from torch import Tensor

from ..configs import Config, config_for
from .kernel import gated_backward, gated_forward

ACTIVATIONS = ("gelu", "gelu_tanh", "silu", "relu")


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


def _launch(
    kernel: str, gate: Tensor, config: Config | None
) -> tuple[tuple[int, int], dict[str, Any]]:
    """(grid, sizes of a tile and of a program)."""
    rows, columns = gate.shape
    config = config or config_for(kernel, gate, columns, rows)
    block_t, block_f = config.block(columns)
    grid = triton.cdiv(rows, block_t), triton.cdiv(columns, block_f)
    return grid, {"BLOCK_T": block_t, "BLOCK_F": block_f, **config.launch}
