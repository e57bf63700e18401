"""A product a b and those of its gradient, in the way that serves best: float32 by parts of
bfloat16 (`parts`), bfloat16 on matrix units (`amx`), by oneDNN with both operands as they lie
(`onednn`), else torch's own.

Shapes: a (M, K), b (K, N).
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...errors import BackendError
from .. import launch
from ..activation import activate
from ..backend import compiling
from ..registered import cpu_op, plain
from . import activated, amx, onednn, parts

WAYS = (*parts.PARTS, amx.WAY, "onednn")
"""Beside torch's own; the first that is preferred serves."""

UNPACKED = "unpacked"
FORWARD = "forward"
"""oneDNN with operands as they lie, as the table tells a product that has a gradient from one that
has none; the latter is a way of `product` too, for products that are large enough."""


def why_not(way: str, *tensors: Tensor | None) -> str | None:
    """Why a way of `WAYS` cannot serve these operands, or None."""
    given = [tensor for tensor in tensors if tensor is not None]
    for tensor in given:
        if type(tensor) not in (Tensor, nn.Parameter):
            return f"it takes plain tensors, not {type(tensor).__name__}"
        if tensor.device.type != "cpu":
            return f"the tensors are on {tensor.device}"
        if way in parts.PARTS and tensor.dtype != torch.float32:
            return "it is of float32"
        if way == amx.WAY and tensor.dtype != torch.bfloat16:
            return "it is of bfloat16"
        if tensor.layout != torch.strided or (not compiling() and tensor._is_zerotensor()):
            return "it takes dense tensors"
    if (reason := activated.around()) is not None:
        return reason
    if way == amx.WAY:
        return amx.unavailable()
    return parts.unavailable() if way in parts.PARTS else onednn.unavailable(given[0].dtype)


def not_preferred(way: str, dtype: torch.dtype) -> str | None:
    """Why a way of `WAYS` is not the first choice for this dtype, or None."""
    if way in parts.PARTS:
        return parts.not_preferred(way)
    return onednn.not_preferred(dtype, amx.UNPACKED if way == amx.WAY else UNPACKED)


def gains(way: str, dtype: torch.dtype, m: int, n: int, k: int) -> bool:
    """Whether a product is large enough to gain by it."""
    if way in parts.PARTS:
        return parts.gains(m, n, k)
    if way == amx.WAY:
        return amx.gains(m, n, k)
    return m * n * k >= onednn.min_work(dtype, UNPACKED)


def preferred(dtype: torch.dtype, *sizes: int) -> str | None:
    """The way of `WAYS` that is to serve a product of this dtype and these sizes (M, N, K; without:
    a large one), now; None: torch's turn."""
    ways = (way for way in WAYS if not sizes or gains(way, dtype, *sizes))
    return next((way for way in ways if not_preferred(way, dtype) is None), None)


def linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    activation: str | None,
    way: str = "",
) -> Tensor:
    """activation(x W^T + b), x (..., C), weight (F, C), bias (F,); differentiable, also twice.
    `way`: as `product` has it, for the products of the gradient too."""
    rows = launch.as_rows(x)
    tensors = [t for t in (x, weight, bias) if t is not None]
    if plain(*tensors):
        return launch.shaped(product(rows, weight.t(), bias, activation or "", way), x)
    if torch.is_grad_enabled() and any(t.requires_grad for t in tensors):
        y = torch.ops.pyenc.product(rows, weight.t(), bias, "", way)
        y = y if activation is None else activate(y, activation)
    else:
        y = torch.ops.pyenc.product(rows, weight.t(), bias, activation or "", way)
    return y.view(*x.shape[:-1], weight.shape[0])


def product(
    a: Tensor,
    b: Tensor,
    bias: Tensor | None = None,
    activation: str = "",
    way: str = "",
) -> Tensor:
    """activation(a b + bias) (M, N), bias (N,), in the way of `WAYS` that is preferred now, or in
    one by name, whatever the size (`FORWARD`: if it is large); torch's product where none gains, or
    it cannot."""
    # Now, not when a graph was traced: torch may be asked for another precision since.
    sizes = a.shape[0], b.shape[1], a.shape[1]
    chosen = way or preferred(a.dtype, *sizes)
    if way == FORWARD:
        chosen = "onednn" if math.prod(sizes) >= onednn.min_work(a.dtype, FORWARD) else None
    if chosen is not None and why_not(chosen, a, b, bias) is None:
        if chosen in parts.PARTS:
            out = parts.multiply(a, b, bias, activation, chosen)
            if out is not None:
                return out
        elif not a.numel() or not b.numel():
            return by_torch(a, b, bias, activation)
        elif chosen == amx.WAY:
            return amx.multiply(a, b, bias, activation)
        else:
            return _by_onednn(a, b, bias, activation)
    return by_torch(a, b, bias, activation)


def _by_onednn(a: Tensor, b: Tensor, bias: Tensor | None, activation: str) -> Tensor:
    """oneDNN's rows must lie one behind the other, and to turn them is what the gradient of a wide
    layer's weight would spend most of its time on: the product is turned where that moves less."""
    m, k, n = *a.shape, b.shape[1]
    moved = m * k * (not a.is_contiguous()) + k * n * (not onednn.is_dense(b))
    turned = k * n * (not b.t().is_contiguous()) + m * k * (not onednn.is_dense(a)) + m * n
    if bias is None and not activation and turned < moved:
        return onednn.run(b.t(), a, None, "").t().contiguous()
    return onednn.run(a, b.t(), bias, activation)


def by_torch(a: Tensor, b: Tensor, bias: Tensor | None, activation: str) -> Tensor:
    """As `linear` has it without this file, to the bit; any leading dimensions of a."""
    weight = b.t()
    if activation and activated.why_not(a, weight, bias) is None:
        return activated.linear(a, weight, bias, activation)
    y = F.linear(a, weight, bias)
    return activate(y, activation) if activation else y


@cpu_op("pyenc::product")
def _op(a: Tensor, b: Tensor, bias: Tensor | None, activation: str, way: str) -> Tensor:
    return product(a, b, bias, activation, way)


@_op.register_fake
def _(a: Tensor, b: Tensor, bias: Tensor | None, activation: str, way: str) -> Tensor:
    return a.new_empty(a.shape[0], b.shape[1])


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    a, b, _, ctx.activation, ctx.way = inputs
    # Turned as b is: a weight's gradient lies as the weight, and is not copied.
    ctx.turned = b.stride(0) == 1
    ctx.save_for_backward(a if b.requires_grad else None, b if a.requires_grad else None)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    if ctx.activation:
        raise BackendError(
            "pyenc::product: the graph was made without gradients, and its activation has none"
        )
    a, b = ctx.saved_tensors
    need_a, need_b, need_bias, *_ = ctx.needs_input_grad

    def multiply(left: Tensor, right: Tensor) -> Tensor:
        made: Tensor = torch.ops.pyenc.product(left, right, None, "", ctx.way)
        return made

    grad_a = multiply(grad, b.t()) if need_a else None
    grad_b = None
    if need_b:
        grad_b = multiply(grad.t(), a).t() if ctx.turned else multiply(a.t(), grad)
    return grad_a, grad_b, grad.sum(0) if need_bias else None, None, None


_op.register_autograd(_backward, setup_context=_setup_context, again=True)
