"""A mixture's experts as registered ops, for graphs: how many tokens an expert has is read on the
host, which no trace could follow. The backward makes the first product once more.

Shapes as suffixes: T packed tokens, K experts of a token, S = T * K slots, G of them that go to one
expert, E experts, C channels, F feed-forward.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..activation import activate
from ..linear import linear
from ..registered import once
from .grouped import gathered, groups_of, summed, weighted

_aten: Any = torch.ops.aten

# A wait for the device has no place in a CUDA graph, which torch.compile then splits here.
_UNSAFE = (torch.Tag.cudagraph_unsafe,)


@torch.library.custom_op("pyenc::experts", mutates_args=(), tags=_UNSAFE)
def _experts_op(
    x: Tensor, chosen: Tensor, weights: Tensor, up: Tensor, down: Tensor, activation: str,
    backend: str,
) -> Tensor:  # fmt: skip
    with torch.no_grad():
        return summed(x, chosen, weights, up, down, activation, backend)


@_experts_op.register_fake
def _(
    x: Tensor, chosen: Tensor, weights: Tensor, up: Tensor, down: Tensor, activation: str,
    backend: str,
) -> Tensor:  # fmt: skip
    return x.new_empty(x.shape)


@torch.library.custom_op("pyenc::experts_backward", mutates_args=(), tags=_UNSAFE)
def _backward_op(
    grad: Tensor, x: Tensor, chosen: Tensor, weights: Tensor, up: Tensor, down: Tensor,
    activation: str, backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    with torch.no_grad():
        return _gradients(grad, x, chosen, weights, up, down, activation, backend)


@_backward_op.register_fake
def _(
    grad: Tensor, x: Tensor, chosen: Tensor, weights: Tensor, up: Tensor, down: Tensor,
    activation: str, backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    return (
        x.new_empty(x.shape), weights.new_empty(weights.shape), up.new_empty(up.shape),
        down.new_empty(down.shape),
    )  # fmt: skip


def _gradients(
    grad_TC: Tensor, x_TC: Tensor, chosen_TK: Tensor, weights_TK: Tensor, up_EFC: Tensor,
    down_EFC: Tensor, activation: str, backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Of x, the weights and both products' matrices."""
    order_S, counts = groups_of(chosen_TK, up_EFC.shape[0])
    each = chosen_TK.shape[1]
    wide = torch.promote_types(x_TC.dtype, torch.float32)
    weights_S1 = weights_TK.reshape(-1, 1).to(wide).index_select(0, order_S)
    rows = gathered(x_TC, order_S, each).split(counts)
    grads = gathered(grad_TC, order_S, each).split(counts)
    grad_up_EFC, grad_down_EFC = torch.zeros_like(up_EFC), torch.zeros_like(down_EFC)
    grad_weights = grad_TC.new_zeros((order_S.shape[0], 1), dtype=wide)
    grad_rows = x_TC.new_empty((order_S.shape[0], x_TC.shape[1]))
    begin = 0
    for e, (x_GC, grad_GC) in enumerate(zip(rows, grads, strict=True)):
        if not x_GC.shape[0]:
            continue
        of = slice(begin, begin := begin + x_GC.shape[0])
        h_GF = linear(x_GC, up_EFC[e], backend=backend)
        a_GF = activate(h_GF, activation)
        # y = a down; of its weighting the slope is y itself, and g . y = (g down^T) . a.
        back_GF = linear(grad_GC, down_EFC[e], backend=backend)
        grad_weights[of] = (back_GF.to(wide) * a_GF.to(wide)).sum(1, keepdim=True)
        scaled_GF = (back_GF.to(wide) * weights_S1[of]).to(x_TC.dtype)
        grad_h_GF = _slope(scaled_GF, h_GF, activation)
        scaled_GC = (grad_GC.to(wide) * weights_S1[of]).to(x_TC.dtype)
        grad_down_EFC[e] = linear(a_GF.t(), scaled_GC.t(), backend=backend)
        grad_up_EFC[e] = linear(grad_h_GF.t(), x_GC.t(), backend=backend)
        grad_rows[of] = linear(grad_h_GF, up_EFC[e].t(), backend=backend)
    place_S = order_S.argsort()
    ones_TK = torch.ones_like(weights_TK, dtype=wide)
    return (
        weighted(grad_rows, order_S, ones_TK).to(x_TC.dtype),
        grad_weights.index_select(0, place_S).view(weights_TK.shape).to(weights_TK.dtype),
        grad_up_EFC,
        grad_down_EFC,
    )


def _slope(grad: Tensor, h: Tensor, activation: str) -> Tensor:
    """The gradient of what is activated, by torch's own."""
    found: Tensor
    if activation == "silu":
        found = _aten.silu_backward(grad, h)
    elif activation == "relu":
        found = _aten.threshold_backward(grad, h, 0)
    else:
        kind = "tanh" if activation == "gelu_tanh" else "none"
        found = _aten.gelu_backward(grad, h, approximate=kind)
    return found


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.activation, ctx.backend = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, chosen, weights, up, down = ctx.saved_tensors
    grad_x, grad_weights, grad_up, grad_down = torch.ops.pyenc.experts_backward(
        grad, x, chosen, weights, up, down, ctx.activation, ctx.backend
    )
    return grad_x, None, grad_weights, grad_up, grad_down, None, None


_experts_op.register_autograd(once("pyenc::experts", _backward), setup_context=_setup_context)
