"""Gated feed-forward: `activation(gate) * value`, elementwise and behind its linear layer.

Shazeer, "GLU Variants Improve Transformer" (arXiv 2002.05202): GEGLU, SwiGLU, ReGLU.
Shapes: T packed tokens, C channels, F feed-forward.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...errors import InputError
from .. import oracle, triton_launch
from ..activation import ACTIVATIONS as ACTIVATIONS
from ..activation import activate, check_activation
from ..autocast import as_autocast, exactly
from ..backend import WhyNot, always, choose, requested_backend, transformed
from ..constant import constant_result
from ..launch import DTYPE_CODES, as_rows, why_not
from ..linear import linear
from ..registered import on_card_of, plain
from ..validation import check_float, check_float_of_any_layout, check_given, check_switch
from . import registration as _registration  # noqa: F401  (it registers the ops)
from .reference import gated_activation_reference, gated_linear_reference


def gated_activation(
    gate: Tensor, value: Tensor, activation: str, *, backend: str | None = None
) -> Tensor:
    """activation(gate) * value, elementwise.

    Args:
        gate, value: equal shapes and dtypes, any strides; float16/32/64 or bfloat16.
        activation: one of `ACTIVATIONS`.
        backend: "triton", "cpu", "torch" or "reference"; None chooses.

    Returns:
        A new tensor of the same shape and dtype; computed in float32 or wider, rounded once.

    Raises:
        InputError: shapes, dtypes or the activation's name are wrong.
    """
    check_given("gated_activation", gate=gate, value=value)
    check_float("gated_activation", gate=gate, value=value)
    if gate.shape != value.shape or gate.dtype != value.dtype:
        raise InputError(
            "gated_activation: gate and value must agree in shape and dtype; got "
            f"{tuple(gate.shape)} {gate.dtype} and {tuple(value.shape)} {value.dtype}"
        )
    check_activation("gated_activation", activation)
    table = backend_table(gate)
    name = choose("gated_activation", backend, table, others=("flash_attn",), of=(gate, value))
    if name == "reference":
        exact = gated_activation_reference(oracle.widen(gate), oracle.widen(value), activation)
        return oracle.narrow(exact, gate.dtype)
    if name in ("cpu", "triton"):
        out: Tensor = torch.ops.pyenc.gated_activation(gate, value, activation, name)
        return out
    # Half precision is rounded once, at the end.
    activated = activate(gate.to(torch.promote_types(gate.dtype, torch.float32)), activation)
    # Without a gradient the product may reuse the activation's memory: fresh pages are slow.
    # So it may not where a transform has one gate beside many values.
    apart = torch.is_grad_enabled() or transformed()
    product = activated * value if apart else activated.mul_(value)
    return product.to(gate.dtype)


def gated_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    activation: str,
    gate_first: bool = True,
    *,
    backend: str | None = None,
) -> Tensor:
    """Both halves of a gated feed-forward in one product: x W^T + b, split, gated.

    Args:
        x: (T, C) or any (..., C).
        weight: (2F, C), the rows of gate and value one after the other, as checkpoints store them.
        bias: (2F,) or None.
        activation: one of `ACTIVATIONS`, applied to the gate half alone.
        gate_first: whether the first F rows are the gate (JinaBert v2, MosaicBERT) or the value
            (JinaBert qk-post-norm, GTE).
        backend: "triton", "cpu", "torch" or "reference"; None chooses. "triton" asked for by name
            makes product and activation in one kernel, which writes F columns and keeps x alone for
            the gradient, where `apart_why` has no reason against it; so does None, without a
            gradient, on cards where that has been measured to be faster. Else the product is
            `linear`'s and the kernel is the activation's.

    Returns:
        (..., F), dtype of x.

    Raises:
        InputError: shapes, dtypes or the activation's name are wrong.
    """
    check_switch("gated_linear", "gate_first", gate_first)
    if (found := _straight(x, weight, bias, activation, gate_first, backend)) is not None:
        return found
    check_given("gated_linear", x=x, weight=weight)
    check_float_of_any_layout("gated_linear", x=x, weight=weight, bias=bias)
    if weight.ndim != 2 or weight.shape[0] % 2 or x.shape[-1:] != weight.shape[1:]:
        raise InputError(
            "gated_linear: weight must be (2F, C) for x (..., C); got "
            f"{tuple(weight.shape)} and {tuple(x.shape)}"
        )
    if bias is not None and bias.shape != weight.shape[:1]:
        raise InputError(
            f"gated_linear: bias must be ({weight.shape[0]},), got {tuple(bias.shape)}"
        )
    check_activation("gated_linear", activation)
    dtypes = {t.dtype for t in (x, weight, bias) if t is not None}
    if len(dtypes) > 1 and not torch.is_autocast_enabled(x.device.type):
        raise InputError(
            "gated_linear: x, weight and bias must share a dtype; got "
            f"{', '.join(sorted(map(str, dtypes)))}"
        )
    given = x, weight, bias
    name = choose("gated_linear", backend, backend_table(x), others=("flash_attn",), of=given)
    if name == "reference":
        x, weight, bias = as_autocast(x), as_autocast(weight), as_autocast(bias)
        with exactly(x.device):
            rows = gated_linear_reference(
                oracle.widen(as_rows(x)), oracle.widen(weight), oracle.widen(bias),
                activation, gate_first,
            )  # fmt: skip
        exact = rows.reshape(*x.shape[:-1], weight.shape[0] // 2)
        return oracle.narrow(exact, x.dtype)
    if name == "triton" and apart_why(x, weight, bias, backend) is None:
        fused: Tensor = torch.ops.pyenc.gated_linear(x, weight, bias, activation, gate_first)
        return fused
    halves = linear(x, weight, bias, backend=backend)
    if name in ("cpu", "triton") and halves.dtype in DTYPE_CODES:
        out: Tensor = torch.ops.pyenc.gated_halves(halves, activation, gate_first, name)
        return out
    first, second = halves.chunk(2, dim=-1)
    gate, value = (first, second) if gate_first else (second, first)
    return gated_activation(gate, value, activation, backend=backend)


def _straight(
    x: Tensor, weight: Tensor, bias: Tensor | None, activation: str, gate_first: bool,
    backend: str | None,
) -> Tensor | None:  # fmt: skip
    """As encoders on a card call it, straight to the Triton kernels; None: the ordinary way, which
    also says what is wrong."""
    shift = weight if bias is None else bias
    if not plain(x, weight, shift) or not triton_launch.serves(x, backend):
        return None
    shape, rows = x.shape, weight.shape
    if not len(shape) == len(rows) == 2 or shape[1] != rows[1] or rows[0] % 2:
        return None
    if activation not in ACTIVATIONS or (bias is not None and bias.shape != rows[:1]):
        return None
    if not x.dtype == weight.dtype == shift.dtype:
        return None
    if not x.layout == weight.layout == shift.layout == torch.strided:
        return None
    if not x.get_device() == weight.get_device() == shift.get_device():
        return None
    if not x.stride(1) == weight.stride(1) == shift.stride(-1) == 1:
        return None
    with on_card_of(x):
        return launch(x, weight, bias, activation, gate_first, backend)


def launch(
    x: Tensor, weight: Tensor, bias: Tensor | None, activation: str, gate_first: bool,
    backend: str | None, known: dict[Any, Any] | None = None,
) -> Tensor:  # fmt: skip
    """`gated_linear` (T, F) of what the Triton kernels serve, on the current card and without a
    gradient: x (T, C), weight (2F, C), bias of one dtype, their columns contiguous; known: launches
    of other such calls (`Known` of the kernels)."""
    kernels = triton_launch.module_for("gated")
    out: Tensor
    if _in_one(x, backend):
        out = kernels.linear_forward(x, weight, bias, activation, gate_first, None, known)
        return out
    first, second = linear(x, weight, bias, backend=backend).chunk(2, -1)
    gate, value = (first, second) if gate_first else (second, first)
    out = kernels.forward(gate, value, activation, None, known)
    return out


def _in_one(x: Tensor, backend: str | None) -> bool:
    """Whether one kernel makes product and activation: `apart_why`, where all else is as `launch`
    takes it."""
    rows, channels = x.shape
    if channels % 16:
        return False
    if requested_backend(backend) == "triton":
        return True
    if x.dtype == torch.float32:
        return False
    least = triton_launch.module_for("configs").gated_linear_rows(x.device)
    return least is not None and rows >= least


def apart_why(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, backend: str | None = None
) -> str | None:
    """Why `gated_linear` on Triton makes product and activation in two kernels, or None where one
    makes both: a call that asks for "triton", and by itself, of halves without a gradient, from so
    many rows on as the device has been measured to gain from ("gated_linear_rows" of
    configs.json)."""
    if torch.is_autocast_enabled(x.device.type):
        return "autocast casts what the product multiplies"
    for name, tensor in (("x", x), ("weight", weight), ("bias", bias)):
        if tensor is not None and tensor.layout is not torch.strided:
            return f"{name} is {tensor.layout}, which torch's own product takes"
        if tensor is not None and tensor.dtype != x.dtype:
            return f"x is {x.dtype} and {name} {tensor.dtype}"
    if (reason := triton_launch.why_not(x)) is not None:
        return reason
    if x.shape[-1] % 16:
        return f"{x.shape[-1]} channels are no multiple of 16, so they would be read one by one"
    if requested_backend(backend) == "triton":
        return None
    if x.dtype == torch.float32:
        return "in float32 no matrix unit multiplies, and the product's own library is faster"
    if torch.is_grad_enabled() and any(
        t is not None and t.requires_grad for t in (x, weight, bias)
    ):
        return "the backward would make the product again: two kernels take less time, one memory"
    least = _least_rows(str(x.device))
    if least is None:
        return "no measurement says that one kernel is faster on this device; ask for 'triton'"
    rows = x.numel() // max(1, x.shape[-1])
    return None if rows >= least else f"{rows} rows are fewer than {least}"


@constant_result
def _least_rows(device: str) -> int | None:
    least: int | None = triton_launch.module_for("configs").gated_linear_rows(torch.device(device))
    return least


def backend_table(gate: Tensor) -> dict[str, WhyNot]:
    """The backends of these ops and why each cannot serve, for `choose` and `explain`."""
    return {
        "cpu": lambda: why_not(gate),
        "triton": lambda: triton_launch.why_not(gate),
        "torch": always,
        "reference": always,
    }
