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
from tests.ops.attention.far_case import HEADS, LEAST, Case, N, dense


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("value", [-1e4, -1e10, -1e31, -2.5e38, LEAST, 1e8, 3e38])
def test_rows_hidden_by_a_number(value: float, dtype: torch.dtype, device: str) -> None:
    Case(device).check(dense(value, device=device).requires_grad_(), "triton", dtype)


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16], ids=str)
def test_by_the_least_of_a_half(kind: torch.dtype, device: str) -> None:
    Case(device).check(dense(torch.finfo(kind).min, kind, device), "triton", torch.float32)


def test_which_of_the_hidden_is_less_so(device: str) -> None:
    """Where log2(e) of neither is a number any more."""
    case, bias = Case(device), dense(LEAST, device=device)
    bias[:, 20, 15] = 0.9 * LEAST
    case.check(bias, "triton", torch.float32)
    case.check(bias, "triton", torch.float32, window=(9, 5))
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
        case.check(bias, "triton", torch.float32)
    bias = torch.randn(HEADS, N, N, device=device)
    bias.diagonal(dim1=1, dim2=2).fill_(value)
    case.check(bias, "triton", torch.float32)
    case.check(torch.randn(HEADS, N, N, device=device), "triton", torch.float32, window=(3, 4))


def test_near_keys_of_another_length_make_no_row_near(device: str) -> None:
    """The shorter sequence sees far keys alone."""
    bias = torch.randn(HEADS, N, N, device=device)
    bias[:, :, :12] = LEAST
    Case(device).check(bias, "triton", torch.float32)


def test_dropout_drops_the_same_in_both_directions(device: str) -> None:
    """Blocks of torch serve such a call whole, with the seed that it was given."""
    case, bias = Case(device), dense(LEAST, device=device)
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
        bias = dense(least, torch.float64, device)
        right = torch.where(bias == least, narrow, bias).float()
    got, wanted = case.by(bias, "triton", torch.float32), case.by(right, "triton", torch.float32)
    for mine, theirs in zip(got, wanted, strict=True):
        assert torch.equal(mine, theirs)
    assert got[0].isfinite().all()
