"""Calls of attention whose bias moves rows far from zero, and their answers."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from pyenc.ops import attention
from tests.oracle import assert_right

N, HEADS = 37, 2
LEAST = torch.finfo(torch.float32).min


class Case:
    """Random q, k, v of two sequences, and what is to be learned of them, under a bias."""

    def __init__(self, device: str = "cpu") -> None:
        self.bounds = torch.tensor([0, 12, N], device=device)
        self.qkv = list(torch.randn(3, N, HEADS, 16, device=device))
        self.shares = (
            torch.randn(N, HEADS, 16, device=device), torch.randn(N, HEADS, device=device),
        )  # fmt: skip

    def by(self, bias: Any, backend: str | None, dtype: torch.dtype, **more: Any) -> list[Tensor]:
        inputs = [x.to(dtype, copy=True).requires_grad_() for x in self.qkv]
        out, lse = attention(
            *inputs, self.bounds, bias=bias, backend=backend, skip_eps=0, return_lse=True, **more
        )  # type: ignore[arg-type]
        shares = [s.to(x.dtype) for s, x in zip(self.shares, (out, lse), strict=True)]
        # Of a far row even the oracle's log-sum-exp has no digits left to tell a weight from.
        near = shares[1] * (lse.detach().abs() < 1e6)
        loss = (out * shares[0]).sum() + (lse * near).sum()
        wanted = inputs
        if isinstance(bias, Tensor) and bias.requires_grad:
            wanted = [*inputs, bias]
        return [out.detach(), lse.detach(), *torch.autograd.grad(loss, wanted)]

    def of_output(self, bias: Any, backend: str, dtype: torch.dtype) -> tuple[Tensor, ...]:
        """Gradients of the output alone, as torch's fused kernels serve it."""
        inputs = [x.to(dtype, copy=True).requires_grad_() for x in self.qkv]
        out = attention(*inputs, self.bounds, bias=bias, backend=backend)  # type: ignore[arg-type]
        assert isinstance(out, Tensor)
        return torch.autograd.grad((out * self.shares[0].to(dtype)).sum(), inputs)

    def check(self, bias: Any, backend: str, dtype: torch.dtype, wide: Any = None, **more: Any):
        wide = bias if wide is None else wide
        three = (
            self.by(bias, backend, dtype, **more),
            self.by(bias, "reference", dtype, **more),
            self.by(wide, "reference", torch.float64, **more),
        )
        for number, (got, naive, oracle) in enumerate(zip(*three, strict=True)):
            assert_right(got, naive, oracle, gradient=number > 1, what=str(number))


def dense(value: float, dtype: torch.dtype = torch.float32, device: str = "cpu") -> Tensor:
    bias = torch.randn(HEADS, N, N, device=device).to(dtype)
    bias[0, 3], bias[:, 20] = value, value  # by place in a sequence
    bias[:, 5, 2], bias[:, 10, 7] = -abs(value), -math.inf
    return bias
