"""bfloat16 products on matrix units (AMX), by a C++ kernel of our own, with a weight packed
beforehand or on the way; bias and activation in the same pass (csrc/linear/bf16_product.h).

Sums are in float32 and rounded once, after the activation. Subnormal numbers count as zero.

Shapes: a (M, K), b (K, N); x (..., C), weight (F, C), bias (F,).
"""

from __future__ import annotations

import torch
from torch import Tensor

from .. import extension, launch
from ..activation import ACTIVATION_CODES
from ..constant import constant_result
from . import packs

WAY = "amx"
"""Its name as a backend, in `PYENC_LINEAR` and in the table."""

UNPACKED = "amx_unpacked"
"""The table's word for products whose second operand is packed on the way, as a gradient needs."""

MIN_SIZES = (512, 64, 64)
"""M, N and K below which to pack b in every call costs what the product saves."""

MIN_WORK = 2**26
"""Multiplications, likewise."""


@constant_result
def unavailable() -> str | None:
    """Why this process has none, or None; as known when torch.compile traces."""
    if (reason := extension.missing()) is not None:
        return reason
    if not launch.module_for("linear").bf16_product_serves():
        return "this processor has no matrix units (AMX), or PYENC_CPU_ISA leaves them out"
    return None


def gains(m: int, n: int, k: int) -> bool:
    """Whether a product whose second operand is packed on the way is large enough to gain."""
    return all(s >= t for s, t in zip((m, n, k), MIN_SIZES, strict=True)) and m * n * k >= MIN_WORK


def pack(weight: Tensor) -> Tensor:
    """A weight (F, C) in the order in which the kernel reads it, as words of float32."""
    module, lines = launch.module_for("linear"), _lines(weight)
    words = module.bf16_pack_words(*weight.shape)
    packed = torch.empty(words + _LINE, dtype=torch.float32, device="cpu")
    packed = packed[-packed.data_ptr() // 4 % _LINE :][:words]
    module.bf16_pack(*weight.shape, torch.get_num_threads(), _place(lines), packed.data_ptr())
    return packed


def run(x: Tensor, weight: Tensor, packed: Tensor, bias: Tensor | None, activation: str) -> Tensor:
    """activation(x W^T + b) (..., F), with the weight's pack."""
    rows = launch.as_rows(x)
    return launch.shaped(_product(rows, weight, packed, bias, activation), x)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None, activation: str) -> Tensor:
    """`run` with the pack kept for this weight."""
    return run(x, weight, packs.packed(weight, pack), bias, activation)


def multiply(a: Tensor, b: Tensor, bias: Tensor | None, activation: str) -> Tensor:
    """activation(a b + bias) (M, N), b packed on the way; no size is 0."""
    return _product(a, b.t(), None, bias, activation)


_LINE = 16
"""Words of a line of the cache."""


def _product(
    a: Tensor, columns: Tensor, packed: Tensor | None, bias: Tensor | None, activation: str
) -> Tensor:
    left = _lines(a)
    right = columns if packed is not None else _lines(columns)
    offset = None if bias is None else bias.resolve_neg().contiguous()
    m, n, k = left.shape[0], *columns.shape
    out = torch.empty(m, n, dtype=torch.bfloat16, device="cpu")
    out = launch.on_large_pages("linear", out)
    launch.module_for("linear").bf16_product(
        m, n, k, torch.get_num_threads(), ACTIVATION_CODES[activation] if activation else -1,
        _place(left), (0, 0, 0) if packed is not None else _place(right),
        launch.pointer(packed), launch.pointer(offset), out.data_ptr(),
    )  # fmt: skip
    return out


def _place(lines: Tensor) -> tuple[int, int, int]:
    # Of one number a line, either stride says nothing.
    line, k = lines.stride()
    return launch.pointer(lines), line, 1 if lines.shape[1] == 1 else k


def _lines(x: Tensor) -> Tensor:
    """x, or a copy, with one of its two strides 1."""
    x = x.resolve_neg()
    return x if 1 in x.stride() else x.contiguous()
