"""Biases by distance (`along`) that tests of attention take, and inputs for them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pyenc.ops import extension

CPU = pytest.param(
    "cpu", marks=pytest.mark.skipif(extension.load() is None, reason=extension.why_missing())
)
BACKENDS = [CPU, "torch"]


class Lopsided(nn.Module):
    """A logarithm to the left, a line to the right, a number of its own at distance 0 and 3."""

    def __init__(self, heads: int, steep: float = 0.5) -> None:
        super().__init__()
        self.left = nn.Parameter(steep * (0.5 + torch.rand(heads)))
        self.inner = nn.Parameter(0.5 + torch.rand(heads))
        self.right = nn.Parameter(steep * torch.rand(heads) / 8)
        self.extra = nn.Parameter(torch.randn(heads))

    def of(self, ahead: Tensor) -> Tensor:
        """By distances of any shape (...): (H, ...)."""
        wide = self.left.dtype
        left, inner, right, extra = (
            x.view(-1, *[1] * ahead.ndim) for x in (self.left, self.inner, self.right, self.extra)
        )
        back, on = (-ahead).clamp(min=0).to(wide), ahead.clamp(min=0).to(wide)
        some = ((ahead == 0) | (ahead == 3)).to(wide)
        return -left * (1 + inner * back).log() - right * on + extra * some

    def along(self, offsets: Tensor) -> Tensor:
        return self.of(offsets)


class Numbers:
    """Any numbers, (H, 2 n - 1) by distance from -(n - 1) on; zeros where nobody looks."""

    def __init__(self, line: Tensor) -> None:
        self.line = line

    def along(self, offsets: Tensor) -> Tensor:
        reach = self.line.shape[1] // 2
        known = self.line[:, offsets.clamp(-reach, reach) + reach]
        return known.masked_fill(offsets.abs() > reach, 0.0)


def inputs(lengths: list[int], heads: int = 2, dim: int = 16) -> dict[str, Any]:
    q, k, v, grad = (torch.randn(sum(lengths), heads, dim) for _ in range(4))
    return {
        "qkv": [2 * q, k, v],
        "grad": grad,
        "grad_lse": torch.randn(sum(lengths), heads),
    }
