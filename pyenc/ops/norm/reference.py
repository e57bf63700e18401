"""The oracle of residual addition and norm, as the formulas read, in the dtype given."""

from __future__ import annotations

import torch
from einops import reduce
from torch import Tensor


def add_layer_norm_reference(
    x: Tensor, residual: Tensor | None, weight: Tensor, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor]:
    """(normed, sum): layer normalisation of x + residual over the last axis (Ba et al. 2016)."""
    total = x if residual is None else x + residual
    centred = total - reduce(total, "... c -> ... 1", "mean")
    variance = reduce(centred**2, "... c -> ... 1", "mean")
    normed = centred / torch.sqrt(variance + eps) * weight
    return (normed if bias is None else normed + bias), total


def add_rms_norm_reference(
    x: Tensor, residual: Tensor | None, weight: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """(normed, sum): root-mean-square normalisation of x + residual (Zhang & Sennrich 2019)."""
    total = x if residual is None else x + residual
    square = reduce(total**2, "... c -> ... 1", "mean")
    return total / torch.sqrt(square + eps) * weight, total
