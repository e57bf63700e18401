"""float32 products on matrix units (AMX), each number by parts of bfloat16.

`bf16x6`: a float's 24 bits are three times eight, and of nine products of two numbers' parts
those three are left out that float32 would round away; sums are in float32
(csrc/linear/product.h). So the error is float32's own, and the rate up to 2.7 times that of its
instructions.

`bf16x3`: two parts, three products, each within 2^-14. That is what
`torch.set_float32_matmul_precision("high")` allows: TF32, which is within 2^-10, or numbers as two
of bfloat16. torch's own products on a CPU know neither, and stay with float32.

Henry, Tang, Heinecke, "Leveraging the bfloat16 artificial intelligence datatype for
higher-precision computations" (arXiv 1904.06376).

Shapes: a (M, K), b (K, N).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...errors import BackendError
from .. import extension, launch
from ..activation import ACTIVATION_CODES, activate
from ..backend import compiling
from ..constant import constant_result
from ..registered import cpu_op, plain
from . import activated, choices, onednn

PARTS = {"bf16x3": 2, "bf16x6": 3}
"""Of a number, by way; the faster first."""

MIN_SIZES = (256, 64, 64)
"""M, N and K below which to split the operands costs what the products save."""

MIN_WORK = 2**27
"""Multiplications, likewise."""


def why_not(*tensors: Tensor | None) -> str | None:
    """Why it cannot serve these operands, or None."""
    for tensor in tensors:
        if tensor is None:
            continue
        if type(tensor) not in (Tensor, nn.Parameter):
            return f"it takes plain tensors, not {type(tensor).__name__}"
        if tensor.device.type != "cpu":
            return f"the tensors are on {tensor.device}"
        if tensor.dtype != torch.float32:
            return "it is of float32"
        if tensor.layout != torch.strided or (not compiling() and tensor._is_zerotensor()):
            return "it takes dense tensors"
    return activated.around() or unavailable()


@constant_result
def unavailable() -> str | None:
    """Why this process has none, or None; as known when torch.compile traces."""
    if (reason := extension.missing()) is not None:
        return reason
    if not launch.module_for("linear").product_serves():
        return "this processor has no matrix units (AMX), or PYENC_CPU_ISA leaves them out"
    return None


def not_preferred(way: str) -> str | None:
    """Why a way of `PARTS` is left out, or None: by PYENC_LINEAR, else by the precision that torch
    is asked for and the table."""
    forced = onednn.forced()
    if forced is not None:
        return None if forced == way else f"{onednn.VARIABLE}={forced}"
    allowed = _precision()
    if allowed not in ("ieee", "tf32"):
        return f"torch is asked for {allowed} products of float32"
    if way == "bf16x3" and allowed != "tf32":
        return 'it is for torch.set_float32_matmul_precision("high")'
    return choices.choice(torch.float32).why_not(way)


def preferred() -> str | None:
    """The way of `PARTS` that is to serve now, or None: F.linear's turn."""
    return next((way for way in PARTS if not_preferred(way) is None), None)


def gains(m: int, n: int, k: int) -> bool:
    """Whether a product is large enough to gain."""
    return all(s >= t for s, t in zip((m, n, k), MIN_SIZES, strict=True)) and m * n * k >= MIN_WORK


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
        y = product(rows, weight.t(), bias, activation or "", way)
    elif torch.is_grad_enabled() and any(t.requires_grad for t in tensors):
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
    """activation(a b + bias) (M, N), bias (N,), in the way of `PARTS` that is preferred now, or in
    one by name, whatever the size; torch's product where parts gain nothing, or cannot: a number is
    not finite or near the largest there is, or all of a row or column are so small that their parts
    are lost (2^-86, or 2^-80 of both)."""
    large = way or gains(a.shape[0], b.shape[1], a.shape[1])
    if large and why_not(a, b, bias) is None:
        # Now, not when a graph was traced: torch may be asked for another precision since.
        chosen = way or preferred()
        out = None if chosen is None else _by_parts(a, b, bias, activation, PARTS[chosen])
        if out is not None:
            return out
    return _by_torch(a, b, bias, activation)


def _by_parts(
    a: Tensor, b: Tensor, bias: Tensor | None, activation: str, parts: int
) -> Tensor | None:
    left, right = _lines(a), _lines(b.t())
    offset = None if bias is None else bias.resolve_neg().contiguous()
    out = torch.empty(len(left), len(right), dtype=torch.float32, device="cpu")
    out = launch.on_large_pages("linear", out)
    served = launch.module_for("linear").product(
        parts, *out.shape, left.shape[1], torch.get_num_threads(),
        ACTIVATION_CODES[activation] if activation else -1,
        (left.data_ptr(), *left.stride()), (right.data_ptr(), *right.stride()),
        launch.pointer(offset), out.data_ptr(),
    )  # fmt: skip
    return out if served else None


def _by_torch(a: Tensor, b: Tensor, bias: Tensor | None, activation: str) -> Tensor:
    """As `linear` has it without this file, to the bit."""
    weight = b.t()
    if activation and activated.why_not(a, weight, bias) is None:
        return activated.linear(a, weight, bias, activation)
    y = F.linear(a, weight, bias)
    return activate(y, activation) if activation else y


def _lines(x: Tensor) -> Tensor:
    """x, or a copy, with one of its two strides 1."""
    x = x.resolve_neg()
    return x if 1 in x.stride() else x.contiguous()


def _precision() -> str:
    """What torch's switches allow products of float32 on a CPU to be made in: "ieee", "tf32" or
    "bf16"."""
    backends: Any = torch.backends
    for owner in (getattr(backends.mkldnn, "matmul", None), backends.mkldnn, backends):
        asked: str = getattr(owner, "fp32_precision", "none")
        if asked != "none":
            return asked
    return "ieee"


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
