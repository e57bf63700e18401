"""Gradients of what a bias learns, the rounding of delta taken back from them.

By formula and by a table, of either alone and of both, in the tiles between and in the flat ones.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import pytest
import torch

pytest.importorskip("triton")
import triton
import triton.language as tl
from torch import Tensor, nn

from pyenc.ops import attention
from pyenc_kernels.attention import launch_backward
from pyenc_kernels.score_function import ScoreFunction
from tests.kernels.attention.attention_case import DRAWS
from tests.kernels.attention.score_biases import (
    BOTH,
    CAPPED,
    CLIPPED,
    Clipped,
    TableAndSlopes,
    clipped_place,
    clipped_score,
)
from tests.oracle import assert_right, margin, naively
from tests.seeds import seed

LENGTHS = [37, 1, 245]
FORMS = ("table and slopes", "pair by pair", "table and near", "near", "table and three", "three",
         "table", "table in no order", "line", "straight line")  # fmt: skip
CLOSER = 1000
"""How much closer corrected gradients are than the rule wants; the others are no such thing."""


@triton.jit
def near_score(s, i, j, head, params):
    return s - tl.load(params) * tl.minimum(tl.abs(i - j), 20.0)


@triton.jit
def near_parameter(s, i, j, head, params, index: tl.constexpr):
    return -tl.minimum(tl.abs(i - j), 20.0)


@triton.jit
def table_and_near_score(s, i, j, head, params):
    return near_score(clipped_score(s, i, j, head, params), i, j, head, params + 41)


@triton.jit
def three_score(s, i, j, head, params):
    s -= tl.load(params) * tl.abs(i - j) + tl.load(params + 1) * tl.maximum(i - j, 0.0)
    return s - tl.load(params + 2) * tl.maximum(j - i, 0.0)


@triton.jit
def three_parameter(s, i, j, head, params, index: tl.constexpr):
    one_side = -tl.maximum(i - j, 0.0) if index == 1 else -tl.maximum(j - i, 0.0)
    return -tl.abs(i - j) if index == 0 else one_side


@triton.jit
def table_and_three_score(s, i, j, head, params):
    return three_score(clipped_score(s, i, j, head, params), i, j, head, params + 41)


@triton.jit
def table_and_three_parameter(s, i, j, head, params, index: tl.constexpr):
    return three_parameter(s, i, j, head, params, index - 41)


NEAR = ScoreFunction(
    near_score, parameter=near_parameter, n_learned=1, affine_from=20, flat=True, by_distance=True
)
TABLE_AND_NEAR = replace(
    NEAR, score=table_and_near_score, lookup=clipped_place, n_learned=42, n_looked=41
)
THREE = ScoreFunction(three_score, parameter=three_parameter, n_learned=3, by_distance=True)
# The place and the score of a number are what they were, and nothing says where it is flat.
UNORDERED = replace(CLIPPED, affine_from=None, flat=False)
TABLE_AND_THREE = replace(
    BOTH, score=table_and_three_score, parameter=table_and_three_parameter, n_learned=44
)


class Near(nn.Module):
    """Slopes to 20, and the same beyond; a table of such distances, too."""

    def __init__(self, heads: int, table: bool) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(heads, 41)) if table else None
        self.slopes = nn.Parameter(0.02 * torch.rand(heads, 1))

    def block(self, i: Tensor, j: Tensor) -> Tensor:
        ahead = j - i[:, None]
        bias = -self.slopes[:, :, None] * ahead.abs().clamp(max=20)
        return bias if self.table is None else bias + self.table[:, ahead.clamp(-20, 20) + 20]

    def kernel(self) -> tuple[ScoreFunction, Tensor]:
        if self.table is None:
            return NEAR, self.slopes
        return TABLE_AND_NEAR, torch.cat([self.table, self.slopes], 1)


class Three(nn.Module):
    """Three slopes, of both sides and of each."""

    def __init__(self, heads: int, table: bool) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(heads, 41)) if table else None
        self.slopes = nn.Parameter(0.02 * torch.rand(heads, 3))

    def block(self, i: Tensor, j: Tensor) -> Tensor:
        ahead = j - i[:, None]
        far = torch.stack([ahead.abs(), (-ahead).clamp(min=0), ahead.clamp(min=0)])
        bias = -torch.einsum("hn,nij->hij", self.slopes, far.to(self.slopes.dtype))
        return bias if self.table is None else bias + self.table[:, ahead.clamp(-20, 20) + 20]

    def kernel(self) -> tuple[ScoreFunction, Tensor]:
        if self.table is None:
            return THREE, self.slopes
        return TABLE_AND_THREE, torch.cat([self.table, self.slopes], 1)


class Lined(nn.Module):
    """The table and a slope of each side, as a line of distances; gradients by the diagonals."""

    def __init__(self, heads: int, affine_from: int | None) -> None:
        super().__init__()
        self.affine_from = affine_from
        self.table = nn.Parameter(torch.randn(heads, 41))
        self.slopes = nn.Parameter(0.02 * torch.rand(heads, 2))

    def along(self, offsets: Tensor) -> Tensor:
        far = torch.stack([(-offsets).clamp(min=0), offsets.clamp(min=0)]).to(self.slopes.dtype)
        return self.table[:, offsets.clamp(-20, 20) + 20] - self.slopes @ far


def made(form: str) -> Any:
    if "line" in form:
        return Lined(2, 20 if "straight" in form else None)
    if "near" in form or "three" in form:
        return (Near if "near" in form else Three)(2, "table" in form)
    if form in ("table", "table in no order"):
        return Clipped(2, UNORDERED if "no" in form else CLIPPED)
    bias = TableAndSlopes(2, replace(BOTH, affine_from=None) if form == "pair by pair" else BOTH)
    with torch.no_grad():
        bias.slopes *= 0.02  # faint, so that what is far counts
    return bias


class Call:
    """Random inputs, and everything that comes of them by a backend."""

    def __init__(self, form: str, device: str, at: int, dtype: torch.dtype, **given: Any) -> None:
        torch.manual_seed(seed(at))
        tokens = sum(LENGTHS)
        self.bias = made(form).to(device)
        self.qkv = [(x * torch.randn(tokens, 2, 16)).to(device, dtype) for x in (2, 1, 1)]
        self.g = torch.randn(tokens, 2, 16).to(device, dtype)
        self.g_lse = torch.randn(tokens, 2, device=device)
        self.cu_seqlens = torch.tensor([0, *LENGTHS], device=device).cumsum(0)
        if given.pop("holes", False):
            given["positions"] = torch.randint(1, 4, (tokens,)).cumsum(0).to(device)
        self.given, self.dtype = given, dtype

    def run(self, backend: str, dtype: torch.dtype, naive: bool = False) -> dict[str, Tensor]:
        inputs = [x.to(dtype).requires_grad_() for x in self.qkv]
        with naively() if naive else nullcontext():
            out, lse = attention(
                *inputs, self.cu_seqlens, bias=self.bias, backend=backend, skip_eps=0,
                return_lse=True, **self.given,
            )  # fmt: skip
        learned = dict(self.bias.named_parameters())
        grads = torch.autograd.grad(
            [out, lse], [*inputs, *learned.values()], [self.g.to(out.dtype), self.g_lse.to(lse)]
        )
        names = ["out", "lse", "dq", "dk", "dv", *learned]
        return {n: x.detach() for n, x in zip(names, (out, lse, *grads), strict=True)}

    def check(self, closer: int = 1) -> None:
        """closer: how much closer what the bias learns is to be than the rule wants."""
        oracle = self.run("reference", torch.float64)
        naive = self.run("reference", self.dtype, naive=True)
        learned = dict(self.bias.named_parameters())
        for name, got in self.run("triton", self.dtype).items():
            with margin(closer if name in learned else 1):
                assert_right(
                    got, naive[name], oracle[name], gradient=name not in ("out", "lse"), what=name
                )


@pytest.mark.parametrize("at", range(DRAWS))
@pytest.mark.parametrize("form", FORMS)
def test_rounding_is_taken_back(form: str, at: int, device: str) -> None:
    """The naive computation rounds its weights, ours its output; corrected, that is not seen."""
    Call(form, device, at, torch.bfloat16).check(CLOSER)


@pytest.mark.parametrize("form", ["table and slopes", "table and near"])
def test_where_it_is_not_it_shows(form: str, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch_backward, "MOST_CORRECTED", 0)
    call = Call(form, device, 0, torch.bfloat16)
    call.check()
    with pytest.raises(AssertionError, match="slopes: off by"):
        call.check(CLOSER)


@pytest.mark.parametrize("given", [{"holes": True}, {"window": (50, 31)}], ids=str)
@pytest.mark.parametrize("form", FORMS)
def test_in_other_calls(form: str, given: dict[str, Any], device: str) -> None:
    if "line" in form and "holes" in given:
        pytest.skip("a line has a gradient by places alone (test_line.py)")
    Call(form, device, 5, torch.float32, **given).check()


def test_how_many_are_corrected() -> None:
    """Those by formula, if they are four or fewer."""
    functions = {
        "both": BOTH,
        "near": NEAR,
        "table and near": TABLE_AND_NEAR,
        "map": CAPPED,
        "three": THREE,
        "table and five": replace(TABLE_AND_THREE, n_learned=46),
        "table": CLIPPED,
    }
    corrected = {name: launch_backward._corrected(function) for name, function in functions.items()}
    assert corrected == {
        "both": 2, "near": 1, "table and near": 1, "map": 2, "three": 3, "table and five": 0,
        "table": 0,
    }  # fmt: skip
