"""The rotary embedding as a registered op, through the C++ kernels.

Shapes: T packed tokens, H heads, D head dim, P positions.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..registered import cpu_op
from .cpu import turn


@cpu_op("pyenc::rotary_cpu")
def _op(x: Tensor, cos: Tensor, sin: Tensor, positions: Tensor, back: bool) -> Tensor:
    x = x if x.stride(-1) == 1 else x.contiguous()
    return turn(x, cos.contiguous(), sin.contiguous(), positions.to(torch.int64).contiguous(), back)


@_op.register_fake
def _(x: Tensor, cos: Tensor, sin: Tensor, positions: Tensor, back: bool) -> Tensor:
    return x.new_empty(x.shape)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, cos, sin, positions, ctx.back = inputs
    ctx.save_for_backward(cos, sin, positions)


def _backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
    # A rotation's transpose is the rotation back.
    grad = torch.ops.pyenc.rotary_cpu(grad_out, *ctx.saved_tensors, not ctx.back)
    return grad, None, None, None, None


_op.register_autograd(_backward, setup_context=_setup, again=True)
