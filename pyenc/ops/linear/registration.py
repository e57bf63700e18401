"""oneDNN's and the widened products, and those of few rows, as registered ops, for graphs: a size
that only a call tells decides in them as it does outside."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import launch
from ..activation import activate
from . import amx, few_rows, onednn, packs, product, wide
from .onednn import MIN_WORK


def work(x: Tensor, weight: Tensor) -> int:
    """Multiplications of a product."""
    return x.numel() // max(1, weight.shape[1]) * weight.numel()


def wide_or_not(x: Tensor, weight: Tensor, bias: Tensor | None, activation: str | None) -> Tensor:
    rows = x.numel() // max(1, x.shape[-1])
    if rows >= wide.MIN_ROWS and work(x, weight) >= MIN_WORK:
        return wide.linear(x, weight, bias, activation)
    y = F.linear(x, weight, bias)
    return y if activation is None else activate(y, activation)


@torch.library.custom_op("pyenc::linear", mutates_args=())
def _linear_op(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    activation: str,
    least: int = 0,
    way: str = "onednn",
) -> Tensor:
    """Opaque, with the ordinary weight: torch.compile cannot carry a packed one. `way`: of
    `PACKED`.

    torch's product serves where there are fewer than `least` multiplications, a size that only a
    call tells; no gradient is needed then.
    """
    return packed_or_not(x, weight, bias, activation, least, way)


PACKED = {"onednn": onednn.linear, amx.WAY: amx.linear}
"""Who multiplies with a pack."""


def packed_or_not(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    activation: str,
    least: int,
    way: str = "onednn",
) -> Tensor:
    few = work(x, weight) < least
    if few or not x.numel() or product.why_not(way, x, weight, bias) is not None:
        return product.by_torch(x, weight.t(), bias, activation)
    if packs.why_not(weight) is None:
        return PACKED[way](x, weight, bias, activation)
    return product.linear(x, weight, bias, activation or None, "" if least else way)


@_linear_op.register_fake
def _(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    activation: str,
    least: int = 0,
    way: str = "onednn",
) -> Tensor:
    return x.new_empty(*x.shape[:-1], weight.shape[0])


@torch.library.custom_op("pyenc::linear_wide", mutates_args=())
def _wide_op(x: Tensor, weight: Tensor, bias: Tensor | None, activation: str) -> Tensor:
    """Opaque, so that a compiled call takes the blocks of rows that another takes, and no gradient
    is asked for."""
    return wide_or_not(x, weight, bias, activation or None)


@_wide_op.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor | None, activation: str) -> Tensor:
    return x.new_empty(*x.shape[:-1], weight.shape[0])


MANY: dict[str, Callable[[Tensor, Tensor, Tensor | None, str, int], Tensor]] = {
    "packed": packed_or_not,
    "packed for amx": functools.partial(packed_or_not, way=amx.WAY),
    "preferred": lambda x, w, b, activation, _: product.linear(x, w, b, activation or None),
    product.FORWARD: lambda x, w, b, activation, _: product.linear(
        x, w, b, activation or None, product.FORWARD
    ),
    "wide": lambda x, w, b, activation, _: wide_or_not(x, w, b, activation or None),
    "torch": lambda x, w, b, activation, _: product.by_torch(x, w.t(), b, activation),
}
"""How many rows may be made, by name: with a pack from so many multiplications on (the last
argument); as is preferred; by oneDNN as the weight lies; in float32; by torch."""


@torch.library.custom_op("pyenc::linear_few_rows", mutates_args=())
def _few_rows_op(
    x: Tensor, weight: Tensor, bias: Tensor | None, activation: str, others: str, least: int = 0
) -> Tensor:
    """Few rows by the kernel that is for them; more, in a graph that takes any number, in the way
    of `MANY` that `others` names, or, where that is "", by the same kernel."""
    if (not others or few_rows.is_few(x, weight)) and few_rows.why_not(x, weight, bias) is None:
        return few_rows.multiply(x, weight, bias, activation or None)
    return MANY[others or "torch"](x, weight, bias, activation, least)


@_few_rows_op.register_fake
def _(
    x: Tensor, weight: Tensor, bias: Tensor | None, activation: str, others: str, least: int = 0
) -> Tensor:
    return x.new_empty(*x.shape[:-1], weight.shape[0])


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, bias, ctx.activation, *ctx.rest = inputs
    ctx.save_for_backward(x, weight, bias)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, weight, bias = ctx.saved_tensors
    need_x, need_weight, need_bias, *_ = ctx.needs_input_grad
    if ctx.activation:
        # Of a derivative that is to be derived again, what the activation is taken at is a part.
        again = torch.is_grad_enabled()
        y = F.linear(x, weight, bias)
        y = y if y.requires_grad else y.detach().requires_grad_()
        with torch.enable_grad():
            (grad,) = torch.autograd.grad(activate(y, ctx.activation), y, grad, create_graph=again)
    rows = launch.as_rows(grad)
    return (
        grad @ weight if need_x else None,
        rows.t() @ launch.as_rows(x) if need_weight else None,
        rows.sum(0) if need_bias else None,
        None,
        *(None for _ in ctx.rest),
    )


_linear_op.register_autograd(_backward, setup_context=_setup_context)
_few_rows_op.register_autograd(_backward, setup_context=_setup_context)
