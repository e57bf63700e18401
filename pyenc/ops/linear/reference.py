"""The oracle of linear layers and of their activations, as the formulas read, in the dtype given.

Shapes: C channels in, F channels out.
"""

from __future__ import annotations

import torch
from einops import einsum
from torch import Tensor


def activation_reference(x: Tensor, activation: str) -> Tensor:
    """GELU x Phi(x) by definition, its tanh approximation, SiLU x sigmoid(x), ReLU max(x, 0)."""
    if activation == "gelu":
        return x * (1 + torch.special.erf(x * 2**-0.5)) / 2
    if activation == "gelu_tanh":
        return x * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (x + 0.044715 * x**3))) / 2
    if activation == "silu":
        return x / (1 + torch.exp(-x))
    if activation == "relu":
        return torch.where(x > 0, x, torch.zeros_like(x))
    raise ValueError(f"unknown activation {activation!r}")


def linear_reference(
    x: Tensor, weight: Tensor, bias: Tensor | None, activation: str | None
) -> Tensor:
    """x (..., C), weight (F, C), bias (F,): activation(x W^T + b), (..., F)."""
    y = einsum(x, weight, "... c, f c -> ... f")
    if bias is not None:
        y = y + bias
    return y if activation is None else activation_reference(y, activation)
