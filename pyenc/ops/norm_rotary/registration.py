"""The heads' norm and rotation as a registered op, through the C++ kernels or Triton's.

Shapes: T packed tokens, H heads, D head dim, P positions.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import triton_launch
from ..registered import kernel_op
from ..rotary.cpu import check_range
from . import cpu


@kernel_op("pyenc::rms_norm_rotary")
def _op(
    x: Tensor, weight: Tensor, k_weight: Tensor | None, k_heads: int, cos: Tensor, sin: Tensor,
    positions: Tensor, eps: float, plus_one: bool, backend: str,
) -> Tensor:  # fmt: skip
    """x (T, H, D), the rest contiguous, cos and sin float32: (T, H, D), contiguous. For "cpu" the
    weights are in float32, and plus_one is done."""
    x = _read(x)
    if backend == "cpu":
        return cpu.forward(x, weight, k_weight, k_heads, cos, sin, positions.to(torch.int64), eps)
    if not x.is_cuda:  # the interpreter would read what there is not
        check_range(positions, cos.shape[0], cpu.OP)
    out: Tensor = triton_launch.module_for("norm_rotary").forward(
        x, weight, k_weight, k_heads, cos, sin, positions, eps, plus_one
    )
    return out


@_op.register_fake
def _(
    x: Tensor, weight: Tensor, k_weight: Tensor | None, k_heads: int, cos: Tensor, sin: Tensor,
    positions: Tensor, eps: float, plus_one: bool, backend: str,
) -> Tensor:  # fmt: skip
    return x.new_empty(x.shape)


@kernel_op("pyenc::rms_norm_rotary_backward")
def _backward_op(
    grad_out: Tensor, x: Tensor, weight: Tensor, k_weight: Tensor | None, k_heads: int,
    cos: Tensor, sin: Tensor, positions: Tensor, eps: float, plus_one: bool, backend: str,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """(gradient of x, of weight, of k_weight or an empty tensor without one)."""
    x = _read(x)
    if backend == "cpu":
        grad_x, grad_weight, grad_k = cpu.backward(
            grad_out.contiguous(), x, weight, k_weight, k_heads, cos, sin,
            positions.to(torch.int64), eps,
        )  # fmt: skip
    else:
        grad_x, grad_weight, grad_k = triton_launch.module_for("norm_rotary").backward(
            _read(grad_out), x, weight, k_weight, k_heads, cos, sin, positions, eps, plus_one
        )
    return grad_x, grad_weight, weight.new_empty(0) if grad_k is None else grad_k


@_backward_op.register_fake
def _(
    grad_out: Tensor, x: Tensor, weight: Tensor, k_weight: Tensor | None, k_heads: int,
    cos: Tensor, sin: Tensor, positions: Tensor, eps: float, plus_one: bool, backend: str,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    of = weight.new_empty(0) if k_weight is None else k_weight.new_empty(k_weight.shape)
    return x.new_empty(x.shape), weight.new_empty(weight.shape), of


def _read(x: Tensor) -> Tensor:
    """As the kernels read heads: their channels side by side."""
    if x.stride(-1) == 1:
        return x
    return x.contiguous() if x.numel() else x.new_empty(x.shape)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, k_weight, ctx.k_heads, cos, sin, positions, *ctx.rest = inputs
    ctx.save_for_backward(x, weight, k_weight, cos, sin, positions)


def _backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
    x, weight, k_weight, *tables = ctx.saved_tensors
    grad_x, grad_weight, grad_k = torch.ops.pyenc.rms_norm_rotary_backward(
        grad_out, x, weight, k_weight, ctx.k_heads, *tables, *ctx.rest
    )
    grad_k = None if k_weight is None else grad_k
    return grad_x, grad_weight, grad_k, *[None] * 7


_op.register_autograd(_backward, setup_context=_setup)
