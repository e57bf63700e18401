"""Linear layers with an activation on the CPU: torch's product, then bias and activation in one
pass over it, in place, through the C++ extension.

torch spreads a bias over the product's rows before it multiplies and reads the result again to
activate it; of a feed-forward's (T, F), the largest tensor there is, that is three passes.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import forward_ad

from .. import launch
from ..activation import ACTIVATION_CODES
from ..backend import compiling, jit_traces


def why_not(x: Tensor, weight: Tensor, bias: Tensor | None) -> str | None:
    """Why the kernel cannot serve, or None. Only where no gradient is needed."""
    if x.dtype != torch.float32:
        return "a half would be rounded between the product and the bias"
    if (reason := around()) is not None:
        return reason
    for tensor in (x, weight, bias):
        if tensor is None:
            continue
        if type(tensor) not in (Tensor, nn.Parameter):
            return f"it takes plain tensors, not {type(tensor).__name__}"
        if not compiling() and tensor._is_zerotensor():
            return "it takes tensors that have memory"
    return launch.why_not(x)


def around() -> str | None:
    """What goes on around a call that a product of ours would not be part of, or None."""
    if torch.is_autocast_enabled("cpu"):
        return "autocast makes another product"
    if torch._C._are_functorch_transforms_active():
        return "torch.func transforms what it cannot see into"
    if jit_traces():
        return "torch.jit takes a trace, which is to hold torch's own ops"
    if forward_ad._current_level >= 0:
        return "a derivative goes forward through what is computed"
    return None


def linear(x: Tensor, weight: Tensor, bias: Tensor | None, activation: str) -> Tensor:
    """activation(x W^T + b) of float32: x (..., C), weight (F, C), bias (F,)."""
    return activate_(F.linear(x, weight).contiguous(), bias, activation)


def activate_(y: Tensor, bias: Tensor | None, activation: str) -> Tensor:
    """activation(y + bias) in the memory of y (..., F), float32 and contiguous; returns y."""
    launch.check_contiguous("linear", y=y)
    rows = launch.as_rows(y)
    offset = None if bias is None else bias.resolve_neg().contiguous()
    place = (launch.pointer(rows), rows.stride(0))
    launch.module_for("linear").gated_forward(
        launch.DTYPE_CODES[y.dtype], ACTIVATION_CODES[activation], *rows.shape,
        torch.get_num_threads(), place, launch.pointer(offset), (0, 0), place,
    )  # fmt: skip
    return y


@torch.library.custom_op("pyenc::linear_activated", mutates_args=())
def _op(x: Tensor, weight: Tensor, bias: Tensor | None, activation: str) -> Tensor:
    """Opaque, so that a compiled call computes what another does."""
    return linear(x, weight, bias, activation)


@_op.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor | None, activation: str) -> Tensor:
    return x.new_empty(*x.shape[:-1], weight.shape[0])
