"""The rotary embedding as a registered op, through the C++ kernels or Triton's.

Shapes: T packed tokens, H heads, D head dim, P positions.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import triton_launch
from ..registered import kernel_op
from . import cpu


@kernel_op("pyenc::rotary")
def _op(x: Tensor, cos: Tensor, sin: Tensor, positions: Tensor, back: bool, backend: str) -> Tensor:
    """x (T, H, D), cos, sin (P, D/2) float32: (T, H, D), contiguous."""
    if x.stride(-1) != 1:  # of nothing, `contiguous` is what there is
        x = x.contiguous() if x.numel() else x.new_empty(x.shape)
    cos, sin, positions = cos.contiguous(), sin.contiguous(), positions.contiguous()
    if backend == "cpu":
        return cpu.turn(x, cos, sin, positions.to(torch.int64), back)
    if not x.is_cuda:  # the interpreter would read what there is not
        cpu.check_range(positions, cos.shape[0])
    out: Tensor = triton_launch.module_for("rotary").turn(x, cos, sin, positions, back)
    return out


@_op.register_fake
def _(x: Tensor, cos: Tensor, sin: Tensor, positions: Tensor, back: bool, backend: str) -> Tensor:
    return x.new_empty(x.shape)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, cos, sin, positions, ctx.back, ctx.backend = inputs
    ctx.save_for_backward(cos, sin, positions)


def _backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
    # A rotation's transpose is the rotation back.
    grad = torch.ops.pyenc.rotary(grad_out, *ctx.saved_tensors, not ctx.back, ctx.backend)
    return grad, None, None, None, None, None


_op.register_autograd(_backward, setup_context=_setup, again=True)
