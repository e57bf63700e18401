"""The passes around a product in eight bits: rows into steps before it, scales and bias after it.

In the C++ extension each is one pass over memory; without it they are torch's, of the same steps.
Of few rows the extension makes the product too (csrc/linear/few_rows.h), of the weight as it lies.

Shapes: T tokens, C channels in, F channels out.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ...errors import InputError
from .. import launch
from ..activation import ACTIVATION_CODES, activate

OP = "int8_linear"

STEPS = 191
"""Steps between a token's smallest and largest value; rounding may take one more."""

TINY = 1.2e-38
"""In the place of a step of zero."""


def quantize(x_TC: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The steps of rows, by torch.

    Returns:
        uint8 (T, C), and the float32 step and zero point of each row: x is about step (u - zero).
    """
    x_TC = x_TC.float()
    low, high = x_TC.amin(1).clamp_max_(0), x_TC.amax(1).clamp_min_(0)
    step = high.sub_(low).div_(STEPS).clamp_min_(TINY)
    # What is not finite becomes nan, which all of the row will be.
    step += step - step
    steep = step.reciprocal()
    zero = low.neg_().mul_(steep).round_()
    # Rounded by cutting off: what is below is no smaller than -0.5, with 0.5 added.
    steps = torch.mul(x_TC, steep[:, None]).add_((zero + 0.5)[:, None])
    return steps.to(torch.uint8), step, zero


def finish(
    y_TF: Tensor, step: Tensor, zero: Tensor, sums: Tensor, bias: Tensor | None,
    activation: str | None, out_TF: Tensor,
) -> None:  # fmt: skip
    """out = activation((y - zero sums) step + bias), by torch; y (T, F) float32 is written over.

    step, zero (T,), sums and bias (F,) float32; out of any dtype, rounded to once.
    """
    # Not `addr_`, which rounds once or twice by where in a row of vectors a number lies.
    y_TF.sub_(zero[:, None] * sums).mul_(step[:, None])
    if bias is not None:
        y_TF.add_(bias)
    out_TF.copy_(y_TF if activation is None else activate(y_TF, activation))


def quantize_in_one(x_TC: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """`quantize` by the extension: x contiguous, float32, bfloat16 or float16; the same bits."""
    launch.check_dtype(OP, "x", x_TC)
    launch.check_like(OP, "x", x_TC, tuple(x_TC.shape[:2]), x_TC.dtype)
    launch.check_contiguous(OP, x=x_TC)
    steps = torch.empty(x_TC.shape, dtype=torch.uint8, device=x_TC.device)
    step, zero = x_TC.new_empty((2, x_TC.shape[0]), dtype=torch.float32)
    launch.module_for(OP).int8_quantize(
        launch.DTYPE_CODES[x_TC.dtype], *x_TC.shape, torch.get_num_threads(), STEPS, TINY,
        launch.pointer(x_TC), steps.data_ptr(), step.data_ptr(), zero.data_ptr(),
    )  # fmt: skip
    return steps, step, zero


def finish_in_one(
    y_TF: Tensor, step: Tensor, zero: Tensor, sums: Tensor, bias: Tensor | None,
    activation: str | None, out_TF: Tensor,
) -> None:  # fmt: skip
    """`finish` by the extension: out contiguous, float32, bfloat16 or float16."""
    rows, columns = y_TF.shape
    launch.check_dtype(OP, "out", out_TF)
    launch.check_like(OP, "y", y_TF, (rows, columns), torch.float32)
    launch.check_like(OP, "out", out_TF, (rows, columns), out_TF.dtype)
    for name, tensor, count in (
        ("step", step, rows), ("zero", zero, rows), ("sums", sums, columns), ("bias", bias, columns)
    ):  # fmt: skip
        if tensor is not None:
            launch.check_like(OP, name, tensor, (count,), torch.float32)
    launch.check_contiguous(OP, y=y_TF, step=step, zero=zero, sums=sums, bias=bias, out=out_TF)
    launch.module_for(OP).int8_finish(
        launch.DTYPE_CODES[out_TF.dtype], *y_TF.shape, torch.get_num_threads(),
        -1 if activation is None else ACTIVATION_CODES[activation], y_TF.data_ptr(),
        step.data_ptr(), zero.data_ptr(), sums.data_ptr(), launch.pointer(bias), out_TF.data_ptr(),
    )  # fmt: skip


def few_rows_in_one(
    x_TC: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None, activation: str | None
) -> Tensor:
    """All passes and the product (T, F) by the extension; the same bits.

    x contiguous, float32, bfloat16 or float16; weight (F, C) int8, each row in one piece; scale
    and bias (F,) float32 and contiguous.
    """
    (rows, depth), columns = x_TC.shape, weight.shape[0]
    launch.check_dtype(OP, "x", x_TC)
    launch.check_like(OP, "weight", weight, (columns, depth), torch.int8)
    if weight.stride(1) != 1 and depth > 1:
        raise InputError(f"{OP}: a row of the weight must be in one piece, got {weight.stride()}")
    for name, tensor in (("scale", scale), ("bias", bias)):
        if tensor is not None:
            launch.check_like(OP, name, tensor, (columns,), torch.float32)
    launch.check_contiguous(OP, x=x_TC, scale=scale, bias=bias)
    out = torch.empty(rows, columns, dtype=x_TC.dtype, device=x_TC.device)
    launch.module_for(OP).int8_few_rows(
        launch.DTYPE_CODES[x_TC.dtype], rows, columns, depth, torch.get_num_threads(),
        -1 if activation is None else ACTIVATION_CODES[activation], STEPS, TINY,
        launch.pointer(x_TC), (launch.pointer(weight), weight.stride(0)), launch.pointer(scale),
        launch.pointer(bias), out.data_ptr(),
    )  # fmt: skip
    return out
