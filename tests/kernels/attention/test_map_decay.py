"""A map of scores with a decay: what is left out stays within its share; a wrong one is found."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("triton")

import triton
import triton.language as tl

from pyenc.errors import InputError
from pyenc.ops import attention, check_score_bias
from pyenc.ops.attention.map_decay_check import check_map_decay
from pyenc.ops.attention.reference import attention_reference
from pyenc.ops.attention.terms import terms_of
from pyenc.ops.attention.triton import forward
from pyenc_kernels.score_function import ScoreFunction
from tests.kernels.attention.score_biases import CAPPED, CappedALiBi
from tests.ops.attention.share_rule import check_row_shares
from tests.ops.attention.skip_inputs import SkipInputs
from tests.oracle import assert_right

N, D = 290, 16
SLOPES = torch.tensor([2.0**-0.5, 2.0**-5])
INPUTS = SkipInputs(N, SLOPES, D)


@triton.jit
def sloped_cap(s, i, j, head, params):
    cap = tl.load(params + 1)
    return cap * (2.0 * tl.sigmoid(2.0 * s / cap) - 1.0) - tl.load(params) * tl.abs(i - j)


@triton.jit
def sloped_cap_slope(s, i, j, head, params):
    t = 2.0 * tl.sigmoid(2.0 * s / tl.load(params + 1)) - 1.0
    return 1.0 - t * t


@triton.jit
def sloped_cap_parameter(s, i, j, head, params, index: tl.constexpr):
    x = s / tl.load(params + 1)
    t = 2.0 * tl.sigmoid(2.0 * x) - 1.0
    return -tl.abs(i - j) + s * 0.0 if index == 0 else t - x * (1.0 - t * t)


@triton.jit
def first_number(head, params, left: tl.constexpr):
    return tl.load(params)


SLOPED_CAP = ScoreFunction(
    sloped_cap, sloped_cap_slope, sloped_cap_parameter, n_learned=2, decay=first_number
)


class SlopedCap(nn.Module):
    """cap tanh(s / cap) - slope |i - j|: the cap first, then what falls without end."""

    def __init__(self, function: ScoreFunction = SLOPED_CAP, heads: int = 2) -> None:
        super().__init__()
        self.slopes = nn.Parameter(SLOPES[:heads].clone())
        self.caps = nn.Parameter(torch.tensor([3.0, 20.0])[:heads])
        self.function = function

    def score(self, s: Tensor, i: Tensor, j: Tensor) -> Tensor:
        slope, cap = (x.to(s)[:, None, None] for x in (self.slopes, self.caps))
        return cap * (s / cap).tanh() - slope * (i[:, None] - j).abs()

    def kernel(self) -> tuple[ScoreFunction, Tensor]:
        return self.function, torch.stack([self.slopes, self.caps], 1)


@triton.jit
def falling_cap(s, i, j, head, params):
    return sloped_cap(-s, i, j, head, params)


@triton.jit
def falling_cap_slope(s, i, j, head, params):
    return -sloped_cap_slope(s, i, j, head, params)


@triton.jit
def falling_cap_parameter(s, i, j, head, params, index: tl.constexpr):
    return sloped_cap_parameter(-s, i, j, head, params, index)


class FallingCap(SlopedCap):
    """The lower the score, the more it makes of it: no bound of scores bounds what it makes."""

    def score(self, s: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return super().score(-s, i, j)


FALLING = ScoreFunction(
    falling_cap, falling_cap_slope, falling_cap_parameter, n_learned=2, decay=first_number
)


def run(qkv: list[Tensor], eps: float, device: str) -> tuple[Tensor, Tensor, Tensor]:
    q, k, v = (x.to(device) for x in qkv)
    with torch.no_grad():
        terms = terms_of(q, SlopedCap().to(device), None, None, None)
        out, lse, met = forward(q, k, v, torch.tensor([0, N], device=device), terms, eps)
    return out.cpu().double(), lse.cpu().double(), met.cpu()


@pytest.mark.parametrize("name", ["plain", "planted -1", "level -6"])
def test_no_row_loses_more_than_its_share(name: str, device: str) -> None:
    qkv = INPUTS.builders[name]()
    with torch.no_grad():
        oracle = attention_reference(
            *(x.double() for x in qkv), torch.tensor([0, N]), bias=SlopedCap().double()
        )
    check_row_shares(lambda eps: run(qkv, eps, device)[:2], qkv[2], oracle, [0.1])


def test_what_is_left_out_and_what_never_is(device: str) -> None:
    """A cap lets no key be heavy, however long it is: more goes than without one. A NaN stays."""
    last = -(-N // 128)
    q, k, v = INPUTS.plain()
    long = [q, k.clone(), v]
    long[1][::7] *= 30
    for given in ([q, k, v], long):
        _, _, met = run(given, 2.0**-11, device)
        share = (met[..., 1] - met[..., 0]).sum(-1) / last**2
        assert share[0] < 0.8  # each grain of three meets itself and its neighbours
        assert share[0] <= share[1]
    long[1][N - 1] = math.nan
    _, _, met = run(long, 2.0**-11, device)
    assert bool((met[..., 1] == last).all())


def test_gradients_with_keys_left_out(device: str) -> None:
    bias = SlopedCap().to(device)
    qkv, g = INPUTS.plain(), torch.randn(N, len(SLOPES), D)

    def answers(backend: str, dtype: torch.dtype) -> list[Tensor]:
        leaves = [x.to(device, dtype).requires_grad_() for x in qkv]
        bounds = torch.tensor([0, N], device=device)
        out = attention(*leaves, bounds, bias=bias, backend=backend)
        assert isinstance(out, Tensor)
        grads = torch.autograd.grad(out, [*leaves, *bias.parameters()], g.to(out))
        return [x.detach().cpu() for x in (out, *grads)]

    got, naive = answers("triton", torch.float32), answers("reference", torch.float32)
    for i, three in enumerate(zip(got, naive, answers("reference", torch.float64), strict=True)):
        assert_right(*three, gradient=i > 0, what=str(i))


def test_the_check_takes_what_holds_and_names_what_does_not(device: str) -> None:
    assert "decay" in check_score_bias(SlopedCap(heads=1), device=device)
    inside = CappedALiBi()  # the cap last: no score is below -cap, however far
    inside.both = nn.Parameter(inside.both[:1].detach().clone())
    inside.function = replace(CAPPED, decay=first_number)
    with pytest.raises(InputError, match=r"CappedALiBi: decay promises a rate of .* at no dist"):
        check_score_bias(inside, device=device)
    with pytest.raises(InputError, match="one that does not fall as the score grows"):
        check_score_bias(FallingCap(FALLING, 1), device=device)


def test_a_map_that_is_sound_only_where_scores_are_small() -> None:
    """Large ones are tried as well; without a rate nothing is promised."""

    def late(s: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return s - torch.where(s < 40, (i[:, None] - j).abs().double(), 0.0)

    i = torch.arange(0, 64, 3)
    check_map_decay("Late", late, i, i, torch.tensor([[0.0, -1.0]]).double())
    with pytest.raises(InputError, match="Late: "):
        check_map_decay("Late", late, i, i, torch.ones(1, 2).double())
