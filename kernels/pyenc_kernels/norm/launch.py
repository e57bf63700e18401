"""Residual addition and norm: the launchers of the kernels, tensors in, tensors out.

Shapes: T rows, C columns, P programs of the backward.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
from torch import Tensor

from ..configs import Config, config_for
from ..launching import Known, Launch, Plans
from .kernel import norm_backward, norm_forward, norm_parameters

WIDEST = 8192
"""Columns at the most: a program holds whole rows."""
PROGRAMS = 256
"""Of the backward, at the most, whatever the card: each adds one row to what is summed up for the
parameters' gradients, whose bits are then the same on all cards of a kind."""

Configs = dict[str, Config]
"""By kernel, where a launch shall not take configs.json's."""


def forward(
    x: Tensor, residual: Tensor | None, weight: Tensor, bias: Tensor | None, eps: float, rms: bool,
    configs: Configs | None = None, unread: tuple[Tensor, Tensor] | None = None,
    known: Known | None = None, plus_one: bool = False,
) -> tuple[Tensor, Tensor | None, Tensor]:  # fmt: skip
    """(norm(x + residual), x + residual or None without one, stats (T, 2) float32).

    x, residual (T, C), C up to WIDEST, float32, bfloat16 or float16, each its own, their columns
    contiguous; weight, bias (C,) contiguous, of any of these dtypes. plus_one: times 1 + weight.
    What is returned is contiguous and of the dtype of x + residual, to which that sum is rounded
    before its norm is taken. unread: where to write the sum and the stats, as they would be made
    here; known: of calls with as many rows, those of residuals at one distance.

    Nothing is checked here, and nothing waits for the device; pyenc.ops.add_layer_norm checks.
    """
    dtype = x.dtype
    if residual is not None and residual.dtype != dtype:
        dtype = torch.promote_types(dtype, residual.dtype)
    rows, columns = shape = x.shape
    total: Tensor | None
    if unread is not None:
        normed, (total, stats) = torch.empty_like(unread[0]), unread
    elif dtype == x.dtype and x.is_contiguous():  # then this is what costs least
        normed, total = torch.empty_like(x), None if residual is None else torch.empty_like(x)
    else:
        normed = x.new_empty(shape, dtype=dtype)
        total = None if residual is None else x.new_empty(shape, dtype=dtype)
    if unread is None:
        stats = x.new_empty((rows, 2), dtype=torch.float32)
    if not (rows and columns):
        return normed, total, stats.zero_()
    tensors = (
        x, x if residual is None else residual, weight, weight if bias is None else bias,
        normed if total is None else total, normed, stats,
    )  # fmt: skip
    key = norm_forward, rms, bias is None, eps, plus_one, residual is None, columns, x.stride(0)
    if known and (launch := known.get(key)) is not None:
        launch(tensors)
        return normed, total, stats
    config = (configs or {}).get("norm_forward")
    config = config or config_for("norm_forward", x, columns, rows, whole=True)
    plan = _FORWARD.of(config, columns, rms, residual is not None, bias is not None, plus_one)
    grid = (-(-rows // plan.constants["BLOCK_T"]),)
    stride = 0 if residual is None else residual.stride(0)
    numbers = x.stride(0), stride, rows, columns, 1 / columns, float(eps)
    plan(grid, tensors, numbers)
    if known is not None:
        known[key] = Launch(plan, grid, numbers)
    return normed, total, stats


def _forward_constants(
    config: Config, columns: int, rms: bool, has_residual: bool, has_bias: bool, plus_one: bool
) -> dict[str, Any]:
    block_t, block_c = config.block(columns, whole=True)
    return {
        "RMS": rms, "HAS_RESIDUAL": has_residual, "HAS_BIAS": has_bias, "PLUS_ONE": plus_one,
        "BLOCK_T": block_t, "BLOCK_C": block_c,
    }  # fmt: skip


_FORWARD = Plans(norm_forward, _forward_constants)


def backward(
    grad_normed: Tensor, grad_total: Tensor | None, total: Tensor, weight: Tensor,
    bias: Tensor | None, stats: Tensor, eps: float, rms: bool, configs: Configs | None = None,
    plus_one: bool = False,
) -> tuple[Tensor, Tensor, Tensor | None]:  # fmt: skip
    """(gradient of x + residual, which is each one's, in total's dtype; of weight, of bias).

    total: the sum that `forward` returned, or its x where there is no residual; it and the
    gradients (T, C), their columns contiguous; the rest as `forward` was given it or returned it.
    """
    grad_x = total.new_empty(total.shape)
    grad_weight = torch.empty_like(weight)
    grad_bias = None if bias is None else torch.empty_like(bias)
    if total.numel() == 0:
        return grad_x, grad_weight.zero_(), None if grad_bias is None else grad_bias.zero_()
    rows, columns = total.shape
    config = (configs or {}).get("norm_backward")
    config = config or config_for("norm_backward", total, columns, rows, whole=True)
    block_t, block_c = config.block(columns, whole=True)
    sizes = {
        "STAGES": config.num_stages, "BLOCK_T": block_t, "BLOCK_C": block_c, **config.launch,
    }  # fmt: skip
    programs = min(triton.cdiv(rows, sizes["BLOCK_T"]), PROGRAMS)
    partial = stats.new_empty((1 if bias is None else 2, programs, columns))
    norm_backward[(programs,)](
        grad_normed, grad_normed if grad_total is None else grad_total, total, weight, stats,
        grad_x, partial, grad_normed.stride(0), 0 if grad_total is None else grad_total.stride(0),
        total.stride(0), rows, columns, 1 / columns,
        RMS=rms, HAS_GRAD_TOTAL=grad_total is not None, HAS_BIAS=bias is not None,
        PLUS_ONE=plus_one, **sizes,
    )  # fmt: skip
    config = (configs or {}).get("norm_parameters")
    config = config or config_for("norm_parameters", total, columns, programs)
    block_p, block_c = config.block(columns)
    norm_parameters[(triton.cdiv(columns, block_c),)](
        partial, grad_weight, grad_weight if grad_bias is None else grad_bias, programs, columns,
        HAS_BIAS=bias is not None, BLOCK_P=block_p, BLOCK_C=block_c, **config.launch,
    )  # fmt: skip
    return grad_x, grad_weight, grad_bias
