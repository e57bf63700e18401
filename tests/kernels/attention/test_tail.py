"""What a bias of one's own may say of all keys from a distance outward, and what follows."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

pytest.importorskip("triton")
import triton
import triton.language as tl
from torch import Tensor, nn

from pyenc.errors import InputError
from pyenc.ops import attention, check_score_bias, computed_share
from pyenc_kernels.score_function import ASYMMETRIC_ALIBI, ScoreFunction
from tests.kernels.attention.attention_case import SKIP_INPUTS
from tests.kernels.attention.score_biases import SOFT_CAP
from tests.ops.attention.share_rule import check_row_shares
from tests.ops.attention.skip_inputs import SkipInputs


@triton.jit
def ridge_score(s, i, j, head, params):
    d = tl.abs(i - j)
    return s + tl.where(d < 9, 3.0, 0.0) - tl.load(params) * d


@triton.jit
def ridge_parameter(s, i, j, head, params, index: tl.constexpr):
    return -tl.abs(i - j)


@triton.jit
def ridge_tail(d, head, params, left: tl.constexpr):
    r = tl.load(params)
    return tl.where(d < 9, 3.0, 0.0) - tl.log(1.0 - tl.exp(-r)) - r * d


@triton.jit
def rising_tail(d, head, params, left: tl.constexpr):
    return ridge_tail(d, head, params, left) + (0.0 if left else tl.where(d > 50, 9.0, 0.0))


@triton.jit
def hasty_tail(d, head, params, left: tl.constexpr):
    """The furthest key's alone."""
    return tl.where(d < 9, 3.0, 0.0) - tl.load(params) * d


RIDGE = ScoreFunction(
    ridge_score, parameter=ridge_parameter, n_learned=1, tail=ridge_tail, affine_from=9
)


class Ridge(nn.Module):
    """ALiBi under a ridge of near keys, which no rate from the query on bounds."""

    def __init__(self, slopes: list[float], function: ScoreFunction = RIDGE) -> None:
        super().__init__()
        self.slopes, self.function = nn.Parameter(torch.tensor(slopes)[:, None]), function

    def block(self, i: Tensor, j: Tensor) -> Tensor:
        d = (j - i[:, None]).abs()
        return 3 * (d < 9) - self.slopes[:, :, None] * d

    def kernel(self) -> tuple[ScoreFunction, Tensor]:
        return self.function, self.slopes


@triton.jit
def hidden_score(s, i, j, head, params):
    d = tl.abs(i - j)
    return s - tl.load(params) * d + tl.where(d < 40, 0.0, float("-inf"))


@triton.jit
def hidden_tail(d, head, params, left: tl.constexpr):
    return tl.where(d < 40, 5.0, float("-inf"))


HIDDEN = ScoreFunction(hidden_score, parameter=ridge_parameter, n_learned=1, tail=hidden_tail)


class Hidden(Ridge):
    def block(self, i: Tensor, j: Tensor) -> Tensor:
        d = (j - i[:, None]).abs()
        return (-self.slopes[:, :, None] * d).masked_fill(d >= 40, float("-inf"))


def test_what_is_hidden_is_left_out(device: str) -> None:
    bias = Hidden([0.1, 0.2], HIDDEN).to(device)
    assert "tail agree" in check_score_bias(bias, span=300, device=device)
    n = 1300
    q, k, v = torch.randn(3, n, 2, 16).to(device).unbind()
    bounds = torch.tensor([0, n], device=device)
    share = computed_share(q, k, v, bounds, bias=bias, skip_eps=2.0**-24, backend="triton")
    assert share < 0.5


def test_what_is_right_passes(device: str) -> None:
    for span in (96, 700):
        said = check_score_bias(Ridge([0.9, 0.02]), span=span, device=device)
        assert "tail, affine_from=9 agree" in said


@pytest.mark.parametrize(
    ("tail", "message"),
    [
        (rising_tail, "Ridge: tail may not rise with the distance; on the right of head 0"),
        (hasty_tail, r"Ridge: tail promises that keys \d+ and more to the (left|right) are given"),
    ],
)
def test_what_is_wrong_is_named(tail: object, message: str, device: str) -> None:
    with pytest.raises(InputError, match=message):
        check_score_bias(Ridge([0.02, 0.3], replace(RIDGE, tail=tail)), span=700, device=device)


def test_a_map_has_none_nor_what_has_a_decay() -> None:
    with pytest.raises(ValueError, match="tail is for what is added, alone; slope says it isn't"):
        replace(SOFT_CAP, tail=ridge_tail)
    with pytest.raises(ValueError, match="alone; decay says as much"):
        replace(ASYMMETRIC_ALIBI, tail=ridge_tail)
    assert RIDGE.fades
    assert ASYMMETRIC_ALIBI.fades
    assert not SOFT_CAP.fades


@pytest.mark.parametrize("name", SKIP_INPUTS)
def test_no_row_loses_more_than_its_share(name: str, device: str) -> None:
    n, slopes = 500, [0.9, 0.2, 0.02, 0.0]
    bounds, bias = torch.tensor([0, n], device=device), Ridge(slopes).to(device)
    q, k, v = (x.to(device) for x in SkipInputs(n, torch.tensor(slopes), 16).builders[name]())

    @torch.no_grad()
    def of(eps: float) -> tuple[Tensor, Tensor]:
        out, lse = attention(
            q, k, v, bounds, bias=bias, skip_eps=eps, return_lse=True, backend="triton"
        )
        return out.cpu(), lse.cpu()

    with torch.no_grad():
        wide = (x.double() for x in (q, k, v))
        oracle = attention(*wide, bounds, bias=bias, return_lse=True, backend="reference")
    check_row_shares(of, v.cpu(), [x.cpu() for x in oracle], [2.0**-24, 0.1])


def test_far_keys_are_left_out(device: str) -> None:
    """Where a slope is, and a number: else none."""
    n = 700
    q, k, v = (0.5 * torch.randn(3, n, 2, 16)).to(device).unbind()
    bounds = torch.tensor([0, n], device=device)

    def share(slope: float) -> float:
        bias = Ridge([slope, slope]).to(device)
        return computed_share(q, k, v, bounds, bias=bias, skip_eps=2.0**-11, backend="triton")

    assert share(0.4) < 0.5
    assert share(0.0) == share(float("nan")) == 1
