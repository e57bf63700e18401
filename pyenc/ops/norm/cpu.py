"""Residual addition and norm on the CPU through the C++ extension.

Shapes: C channels; any leading axes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ...errors import InputError
from ..launch import (
    DTYPE_CODES,
    check_contiguous,
    check_dtype,
    check_like,
    module_for,
    pointer,
)

OP = "add_norm"


def forward(
    x: Tensor, residual: Tensor | None, weight: Tensor, bias: Tensor | None, eps: float, rms: bool
) -> tuple[Tensor, Tensor | None, Tensor]:
    """(norm(x + residual), x + residual or None without one, stats (T, 2) float32).

    x, residual (T, C) float32, bfloat16 or float16; weight, bias (C,) float32; contiguous, on the
    CPU. The sum is rounded to x's dtype before its norm is taken in float32. The same bits for any
    number of threads. Raises InputError on arguments it cannot serve, BackendError without the
    extension.
    """
    call = _call(x, weight, bias, eps, rms)
    total = None
    if residual is not None:
        check_like(OP, "residual", residual, tuple(x.shape), x.dtype)
        check_contiguous(OP, residual=residual)
        total = torch.empty_like(x)
    normed = torch.empty_like(x)
    stats = x.new_empty((x.shape[0], 2), dtype=torch.float32)
    module_for(OP).norm_forward(
        *call, pointer(x), pointer(residual), pointer(total), normed.data_ptr(), stats.data_ptr()
    )
    return normed, total, stats


def backward(
    grad_normed: Tensor,
    grad_total: Tensor | None,
    total: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stats: Tensor,
    eps: float,
    rms: bool,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """(gradient of x, which is the residual's too, of weight, of bias), all as `forward`'s.

    Sums over tokens run in a fixed order: the same bits for any number of threads.
    """
    call = _call(total, weight, bias, eps, rms)
    check_like(OP, "stats", stats, (total.shape[0], 2), torch.float32)
    for name, grad in (("grad_normed", grad_normed), ("grad_total", grad_total)):
        if grad is not None:
            check_like(OP, name, grad, tuple(total.shape), total.dtype)
    check_contiguous(OP, grad_normed=grad_normed, grad_total=grad_total, stats=stats)
    grad_x = torch.empty_like(total)
    grad_weight = torch.empty_like(weight)
    grad_bias = None if bias is None else torch.empty_like(bias)
    module_for(OP).norm_backward(
        *call, grad_normed.data_ptr(), pointer(grad_total), total.data_ptr(), stats.data_ptr(),
        grad_x.data_ptr(), grad_weight.data_ptr(), pointer(grad_bias),
    )  # fmt: skip
    return grad_x, grad_weight, grad_bias


def _call(
    x: Tensor, weight: Tensor, bias: Tensor | None, eps: float, rms: bool
) -> tuple[int, bool, int, int, float, int, int, int]:
    check_dtype(OP, "x", x)
    if x.ndim != 2 or weight.ndim != 1:
        raise InputError(
            f"{OP}: x must be (T, C) and weight (C,), got {tuple(x.shape)}, {tuple(weight.shape)}"
        )
    check_like(OP, "x", x, (x.shape[0], weight.shape[0]), x.dtype)
    check_like(OP, "weight", weight, (x.shape[1],), torch.float32)
    if bias is not None:
        check_like(OP, "bias", bias, (x.shape[1],), torch.float32)
    check_contiguous(OP, x=x, weight=weight, bias=bias)
    threads = torch.get_num_threads()
    return (
        DTYPE_CODES[x.dtype], rms, *x.shape, eps, pointer(weight), pointer(bias), threads,
    )  # fmt: skip
