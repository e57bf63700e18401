"""Rows that a dense bias moves far from zero, such as those of queries hidden from every key by the
most negative number there is: the mean of the values as by the formula, and its gradient."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

from pyenc.ops import ALiBi, RelativePositionBias, attention
from pyenc.ops.attention import triton
from tests.kernels.attention.attention_case import DTYPES
from tests.oracle import assert_right

N, HEADS = 37, 2
LEAST = torch.finfo(torch.float32).min


class Case:
    """Random q, k, v of two sequences, and what is to be learned of them."""

    def __init__(self, device: str) -> None:
        self.bounds = torch.tensor([0, 12, N], device=device)
        self.qkv = list(torch.randn(3, N, HEADS, 16, device=device))
        self.shares = (
            torch.randn(N, HEADS, 16, device=device),
            torch.randn(N, HEADS, device=device),
        )

    def by(self, bias: Any, backend: str, dtype: torch.dtype, **more: Any) -> list[Tensor]:
        inputs = [x.to(dtype, copy=True).requires_grad_() for x in self.qkv]
        found = attention(*inputs, self.bounds, bias=bias, backend=backend, return_lse=True, **more)  # type: ignore[arg-type]
        out, lse = found
        shares = [s.to(x.dtype) for s, x in zip(self.shares, (out, lse), strict=True)]
        # Of a far row even the oracle's log-sum-exp has no digits left to tell a weight from.
        near = shares[1] * (lse.detach().abs() < 1e6)
        loss = (out * shares[0]).sum() + (lse * near).sum()
        wanted = inputs
        if isinstance(bias, Tensor) and bias.requires_grad:
            wanted = [*inputs, bias]
        return [out.detach(), lse.detach(), *torch.autograd.grad(loss, wanted)]

    def check(self, bias: Any, dtype: torch.dtype, **more: Any) -> None:
        three = (
            self.by(bias, "triton", dtype, **more),
            self.by(bias, "reference", dtype, **more),
            self.by(bias, "reference", torch.float64, **more),
        )
        for number, (got, naive, oracle) in enumerate(zip(*three, strict=True)):
            assert_right(got, naive, oracle, gradient=number > 1, what=str(number))


def dense(value: float, device: str, dtype: torch.dtype = torch.float32) -> Tensor:
    bias = torch.randn(HEADS, N, N, device=device).to(dtype)
    bias[0, 3], bias[:, 20] = value, value  # by place in a sequence
    bias[:, 5, 2], bias[:, 10, 7] = -abs(value), -math.inf
    return bias


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("value", [-1e4, -1e10, -1e31, -2.5e38, LEAST, 1e8, 3e38])
def test_rows_hidden_by_a_number(value: float, dtype: torch.dtype, device: str) -> None:
    Case(device).check(dense(value, device).requires_grad_(), dtype)


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16], ids=str)
def test_by_the_least_of_a_half(kind: torch.dtype, device: str) -> None:
    Case(device).check(dense(torch.finfo(kind).min, device, kind), torch.float32)


def test_which_of_the_hidden_is_less_so(device: str) -> None:
    """Where log2(e) of neither is a number any more."""
    case, bias = Case(device), dense(LEAST, device)
    bias[:, 20, 15] = 0.9 * LEAST
    case.check(bias, torch.float32)
    case.check(bias, torch.float32, window=(9, 5))
    with torch.no_grad():
        out = attention(*case.qkv, case.bounds, bias=bias, backend="triton")  # type: ignore[arg-type]
    assert isinstance(out, Tensor)
    assert torch.equal(out[12 + 20], case.qkv[2][12 + 15])


def test_a_hidden_row_beside_a_far_one(device: str) -> None:
    """Its log-sum-exp is -inf."""
    case, bias = Case(device), torch.randn(HEADS, N, N, device=device)
    bias[1, 3], bias[:, 5] = -math.inf, LEAST
    with torch.no_grad():
        _, lse = attention(*case.qkv, case.bounds, bias=bias, backend="triton", return_lse=True)  # type: ignore[arg-type]
    assert (lse == -math.inf).nonzero().tolist() == [[3, 1], [15, 1]]
    assert not lse.isnan().any()


@pytest.mark.parametrize("value", [-1e4, LEAST, -math.inf])
def test_who_has_no_far_row_goes_through_the_kernels(
    value: float, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where keys are hidden, and even a query's own; how much those beyond a sequence have is
    nothing to it."""
    monkeypatch.setattr(triton, "blocks", None)
    case = Case(device)
    for hidden in (slice(20, 23), [0, 9]):
        bias = torch.randn(HEADS, N + 3, N + 3, device=device)
        bias[:, :, hidden] = value
        bias[:, 30:, 30:] = LEAST
        case.check(bias, torch.float32)
    bias = torch.randn(HEADS, N, N, device=device)
    bias.diagonal(dim1=1, dim2=2).fill_(value)
    case.check(bias, torch.float32)
    case.check(torch.randn(HEADS, N, N, device=device), torch.float32, window=(3, 4))


def test_near_keys_of_another_length_make_no_row_near(device: str) -> None:
    """The shorter sequence sees far keys alone."""
    bias = torch.randn(HEADS, N, N, device=device)
    bias[:, :, :12] = LEAST
    Case(device).check(bias, torch.float32)


def test_dropout_drops_the_same_in_both_directions(device: str) -> None:
    """Blocks of torch serve such a call whole, with the seed that it was given."""
    case, bias = Case(device), dense(LEAST, device)
    found = []
    for backend in ("triton", "torch"):
        torch.manual_seed(4)
        found.append(case.by(bias, backend, torch.float32, dropout_p=0.3))
    for mine, theirs in zip(*found, strict=True):
        assert torch.equal(mine, theirs)


@pytest.mark.parametrize("kind", ["alibi", "t5", "dense"])
def test_numbers_of_float64_stay_finite(kind: str, device: str) -> None:
    """In the scores' float32 they are the largest there is, and a query is not hidden from itself
    by a slope that would be infinite."""
    wide, narrow = torch.tensor([1e300, 0.5], dtype=torch.float64, device=device), LEAST
    least = torch.finfo(torch.float64).min
    case = Case(device)
    bias: Any
    right: Any
    if kind == "alibi":
        bias, right = ALiBi(wide), ALiBi(torch.where(wide > 1, -narrow, wide).float())
    elif kind == "t5":
        table = torch.randn(8, HEADS, dtype=torch.float64, device=device)
        table[1] = least
        bias = RelativePositionBias(table, 16)
        right = RelativePositionBias(table.clamp(min=narrow).float(), 16)
    else:
        bias = dense(least, device, torch.float64)
        right = torch.where(bias == least, narrow, bias).float()
    got, wanted = case.by(bias, "triton", torch.float32), case.by(right, "triton", torch.float32)
    for mine, theirs in zip(got, wanted, strict=True):
        assert torch.equal(mine, theirs)
    assert got[0].isfinite().all()
