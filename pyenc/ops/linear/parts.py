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

import torch
from torch import Tensor

from .. import extension, launch
from ..activation import ACTIVATION_CODES
from ..constant import constant_result
from . import choices, onednn

PARTS = {"bf16x3": 2, "bf16x6": 3}
"""Of a number, by way; the faster first."""

MIN_SIZES = (256, 64, 64)
"""M, N and K below which to split the operands costs what the products save."""

MIN_WORK = 2**27
"""Multiplications, likewise."""


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
    allowed = onednn.precision()
    if allowed not in ("ieee", "tf32"):
        return f"torch is asked for {allowed} products of float32"
    if way == "bf16x3" and allowed != "tf32":
        return 'it is for torch.set_float32_matmul_precision("high")'
    return choices.choice(torch.float32).why_not(way)


def gains(m: int, n: int, k: int) -> bool:
    """Whether a product is large enough to gain."""
    return all(s >= t for s, t in zip((m, n, k), MIN_SIZES, strict=True)) and m * n * k >= MIN_WORK


def multiply(a: Tensor, b: Tensor, bias: Tensor | None, activation: str, way: str) -> Tensor | None:
    """activation(a b + bias); None where the kernel cannot: a number is not finite or near the
    largest there is, or all of a row or column are so small that their parts are lost (2^-86, or
    2^-80 of both)."""
    left, right = _lines(a), _lines(b.t())
    offset = None if bias is None else bias.resolve_neg().contiguous()
    out = torch.empty(len(left), len(right), dtype=torch.float32, device="cpu")
    out = launch.on_large_pages("linear", out)
    served = launch.module_for("linear").product(
        PARTS[way], *out.shape, left.shape[1], torch.get_num_threads(),
        ACTIVATION_CODES[activation] if activation else -1,
        (launch.pointer(left), *left.stride()), (launch.pointer(right), *right.stride()),
        launch.pointer(offset), out.data_ptr(),
    )  # fmt: skip
    return out if served else None


def _lines(x: Tensor) -> Tensor:
    """x, or a copy, with one of its two strides 1."""
    x = x.resolve_neg()
    return x if 1 in x.stride() else x.contiguous()
