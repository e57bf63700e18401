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
        return x * torch.sigmoid(x)  # whose gradient is a number where exp(-x) is none
    if activation == "relu":
        return torch.where(x <= 0, torch.zeros_like(x), x)  # a NaN stays one
    raise ValueError(f"unknown activation {activation!r}")


def linear_reference(
    x: Tensor, weight: Tensor, bias: Tensor | None, activation: str | None
) -> Tensor:
    """x (..., C), weight (F, C), bias (F,): activation(x W^T + b), (..., F)."""
    y = einsum(x, weight, "... c, f c -> ... f")
    if bias is not None:
        y = y + bias
    return y if activation is None else activation_reference(y, activation)


def int8_linear_reference(
    x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None, activation: str | None
) -> Tensor:
    """x (..., C), weight (F, C) int8, scale (F,): the integers' product in float64, as the formula
    reads; only which integers x is rounded to is decided in float32, which is part of it."""
    x = x.float()
    low = x.amin(-1, keepdim=True).clamp(max=0)
    high = x.amax(-1, keepdim=True).clamp(min=0)
    step = ((high - low) / 191).clamp(min=1.2e-38)
    steep = 1 / step
    zero = torch.round(-low * steep)
    u = torch.floor(x * steep + (zero + 0.5)).clamp(0, 192)
    step = torch.where(step.isfinite(), step, torch.nan)
    sums = einsum((u - zero).double(), weight.double(), "... c, f c -> ... f")
    y = sums * step.double() * scale.double()
    if bias is not None:
        y = y + bias.double()
    return y if activation is None else activation_reference(y, activation)
