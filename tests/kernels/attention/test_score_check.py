"""A bias of one's own: the kernels serve it, and `check_score_bias` finds what is wrong with it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("triton")

import triton
import triton.language as tl

from pyenc.errors import BackendError, InputError
from pyenc.ops import AsymmetricALiBi, attention, check_score_bias
from pyenc_kernels.score_function import ASYMMETRIC_ALIBI, ScoreFunction
from tests.oracle import assert_right


@triton.jit
def soft_cap(s, i, j, head, params):
    cap = tl.load(params)
    return cap * (2.0 * tl.sigmoid(2.0 * s / cap) - 1.0)


@triton.jit
def soft_cap_slope(s, i, j, head, params):
    t = 2.0 * tl.sigmoid(2.0 * s / tl.load(params)) - 1.0
    return 1.0 - t * t


@triton.jit
def soft_cap_parameter(s, i, j, head, params, index: tl.constexpr):
    x = s / tl.load(params)
    t = 2.0 * tl.sigmoid(2.0 * x) - 1.0
    return t - x * (1.0 - t * t)


@triton.jit
def wrong_slope(s, i, j, head, params):
    return 1.0 + s * 0.0


SOFT_CAP = ScoreFunction(soft_cap, soft_cap_slope, soft_cap_parameter, n_learned=1)


class SoftCap(nn.Module):
    """tanh(s / cap) * cap, one learned cap a head: a map that is not an addition."""

    def __init__(self, heads: int, function: ScoreFunction = SOFT_CAP) -> None:
        super().__init__()
        self.log_cap = nn.Parameter(torch.linspace(0.5, 1.5, heads))
        self.function = function

    def score(self, s: Tensor, i: Tensor, j: Tensor) -> Tensor:
        cap = self.log_cap.exp()[:, None, None]
        return cap * (s / cap).tanh()

    def kernel(self) -> tuple[ScoreFunction, Tensor]:
        return self.function, self.log_cap.exp()[:, None]


class Lopsided(AsymmetricALiBi):
    """With another function than the torch form is of."""

    function = ASYMMETRIC_ALIBI

    def kernel(self) -> tuple[Any, Tensor]:
        return self.function, self.slopes


@triton.jit
def swapped_score(s, i, j, head, params):
    s -= tl.load(params + 1) * tl.maximum(i - j, 0.0)
    return s - tl.load(params) * tl.maximum(j - i, 0.0)


@triton.jit
def swapped_parameter(s, i, j, head, params, index: tl.constexpr):
    return -tl.maximum(j - i, 0.0) if index == 0 else -tl.maximum(i - j, 0.0)


@triton.jit
def hasty_decay(head, params, left: tl.constexpr):
    return 1.5 * tl.load(params)


@triton.jit
def window_score(s, i, j, head, params):
    return tl.where(tl.abs(i - j) <= tl.load(params), s, float("-inf"))


WINDOW = ScoreFunction(window_score)


class Window:
    """A sliding window as a map of scores; the kernels' own also bounds their loops."""

    def __init__(self, reach: int, heads: int) -> None:
        self.reach, self.heads, self.function = reach, heads, WINDOW

    def score(self, s: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return s.masked_fill((i[:, None] - j).abs() > self.reach, float("-inf"))

    def kernel(self) -> tuple[ScoreFunction, Tensor]:
        return self.function, torch.full((self.heads, 1), float(self.reach))


@triton.jit
def clipped_place(i, j, head, params):
    return (tl.minimum(tl.maximum(j - i, -20.0), 20.0) + 20.0).to(tl.int32)


@triton.jit
def clipped_score(s, i, j, head, params):
    return s + tl.load(params + clipped_place(i, j, head, params))


@triton.jit
def mirrored_place(i, j, head, params):
    return clipped_place(j, i, head, params)


@triton.jit
def float_place(i, j, head, params):
    return tl.minimum(tl.maximum(j - i, -20.0), 20.0) + 20.0


CLIPPED = ScoreFunction(
    clipped_score, lookup=clipped_place, n_learned=41, affine_from=20, flat=True
)


class Clipped(nn.Module):
    """A number for each distance up to 20: a table that is looked up."""

    def __init__(self, heads: int, function: ScoreFunction = CLIPPED) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(heads, 41))
        self.function = function

    def block(self, i: Tensor, j: Tensor) -> Tensor:
        return self.table[:, (j - i[:, None]).clamp(-20, 20) + 20]

    def kernel(self) -> tuple[ScoreFunction, Tensor]:
        return self.function, self.table


@triton.jit
def both_score(s, i, j, head, params):
    far = tl.load(params + 41) * tl.maximum(i - j, 0.0) + tl.load(params + 42) * tl.abs(i - j)
    return clipped_score(s, i, j, head, params) - far


@triton.jit
def both_parameter(s, i, j, head, params, index: tl.constexpr):
    return -tl.maximum(i - j, 0.0) if index == 41 else -tl.abs(i - j)


@triton.jit
def both_swapped(s, i, j, head, params, index: tl.constexpr):
    return -tl.maximum(i - j, 0.0) if index == 42 else -tl.abs(i - j)


BOTH = ScoreFunction(
    both_score, parameter=both_parameter, lookup=clipped_place, n_learned=43, n_looked=41,
    affine_from=20, by_distance=True,
)  # fmt: skip


class TableAndSlopes(Clipped):
    """A table for what is near, and two slopes: looked up, and by formula."""

    def __init__(self, heads: int, function: ScoreFunction = BOTH) -> None:
        super().__init__(heads, function)
        self.slopes = nn.Parameter(torch.rand(heads, 2))

    def block(self, i: Tensor, j: Tensor) -> Tensor:
        back = i[:, None] - j
        left, all_ = self.slopes[:, 0, None, None], self.slopes[:, 1, None, None]
        return super().block(i, j) - left * back.clamp(min=0) - all_ * back.abs()

    def kernel(self) -> tuple[ScoreFunction, Tensor]:
        return self.function, torch.cat([self.table, self.slopes], 1)


@triton.jit
def capped_score(s, i, j, head, params):
    x = s - tl.load(params) * tl.abs(i - j)
    cap = tl.load(params + 1)
    return cap * (2.0 * tl.sigmoid(2.0 * x / cap) - 1.0)


@triton.jit
def capped_slope(s, i, j, head, params):
    x = (s - tl.load(params) * tl.abs(i - j)) / tl.load(params + 1)
    t = 2.0 * tl.sigmoid(2.0 * x) - 1.0
    return 1.0 - t * t


@triton.jit
def capped_parameter(s, i, j, head, params, index: tl.constexpr):
    x = (s - tl.load(params) * tl.abs(i - j)) / tl.load(params + 1)
    t = 2.0 * tl.sigmoid(2.0 * x) - 1.0
    return -tl.abs(i - j) * (1.0 - t * t) if index == 0 else t - x * (1.0 - t * t)


@triton.jit
def too_much(s, i, j, head, params, index: tl.constexpr):
    by = capped_parameter(s, i, j, head, params, index)
    return by if index == 0 else 1.3 * by


@triton.jit
def nothing(s, i, j, head, params, index: tl.constexpr):
    by = capped_parameter(s, i, j, head, params, index)
    return by if index == 0 else 0.0 * by


CAPPED = ScoreFunction(capped_score, capped_slope, capped_parameter, n_learned=2)


class CappedALiBi(nn.Module):
    """A slope and a cap, numbers of sizes that differ by a thousand, in one tensor."""

    def __init__(self, parameter: Any = capped_parameter) -> None:
        super().__init__()
        self.both = nn.Parameter(torch.tensor([[0.05, 30.0], [0.003, 60.0]]))
        self.function = replace(CAPPED, parameter=parameter)

    def score(self, s: Tensor, i: Tensor, j: Tensor) -> Tensor:
        slope, cap = self.both[:, 0, None, None], self.both[:, 1, None, None]
        return cap * ((s - slope * (i[:, None] - j).abs()) / cap).tanh()

    def kernel(self) -> tuple[ScoreFunction, Tensor]:
        return self.function, self.both


@triton.jit
def broken_off_score(s, i, j, head, params):
    return s - tl.load(params) * tl.minimum(tl.abs(i - j), 600.0)


@triton.jit
def one_rate(head, params, left: tl.constexpr):
    return tl.load(params)


class BrokenOff(nn.Module):
    """ALiBi that stops falling at 600: no decay beyond."""

    function = ScoreFunction(broken_off_score, decay=one_rate)

    def block(self, i: Tensor, j: Tensor) -> Tensor:
        return -0.1 * (i[:, None] - j).abs().clamp(max=600)[None]

    def kernel(self) -> tuple[ScoreFunction, Tensor]:
        return self.function, torch.full((1, 1), 0.1)


@triton.jit
def faint_score(s, i, j, head, params):
    return s - tl.load(params) * tl.where(head == 0, 1.1, 1.0) * tl.abs(i - j)


class Faint(Lopsided):
    """Wrong in a head whose slope is a ten-thousandth of the other's."""

    function = ScoreFunction(faint_score)

    def block(self, i: Tensor, j: Tensor) -> Tensor:
        return -self.slopes[:, 0, None, None] * (i[:, None] - j).abs()


def lopsided(**changes: Any) -> Lopsided:
    slopes = torch.tensor([[0.5, 0.1], [0.2, 0.3]], requires_grad=True)
    made = Lopsided(slopes)
    object.__setattr__(made, "function", replace(ASYMMETRIC_ALIBI, **changes))
    return made


def test_what_is_right_passes(device: str) -> None:
    said = check_score_bias(SoftCap(3), device=device)
    assert said == (
        "SoftCap: score, slope, parameter (gradients of 1 tensors) agree with the torch form on "
        "2560 pairs a head, at distances up to 8191"
    )
    for _ in range(5):
        assert "up to 999" in check_score_bias(CappedALiBi(), span=1000, device=device)
    assert "decay" in check_score_bias(BrokenOff(), span=601, device=device)
    check_score_bias(Clipped(2), device=device)
    said = check_score_bias(TableAndSlopes(2), device=device)
    assert "lookup and parameter (gradients of 2 tensors)" in said
    check_score_bias(lopsided(), device=device)
    check_score_bias(AsymmetricALiBi(torch.rand(2, 2, requires_grad=True)), device=device)


@pytest.mark.parametrize(
    ("bias", "message"),
    [
        (SoftCap(2, replace(SOFT_CAP, slope=wrong_slope)), "slope .* is off by"),
        (lopsided(score=swapped_score), "Lopsided: score is off by up to .* at head"),
        (lopsided(parameter=swapped_parameter), r"parameter: the gradient of parameters\(\)\[0\]"),
        (lopsided(parameter=None, n_learned=0), "has neither parameter nor lookup"),
        (Clipped(2, replace(CLIPPED, lookup=mirrored_place)), "lookup: the gradient of"),
        (
            TableAndSlopes(2, replace(BOTH, parameter=both_swapped)),
            r"lookup and parameter: the gradient of parameters\(\)\[1\]",
        ),
        (
            TableAndSlopes(2, replace(BOTH, lookup=mirrored_place)),
            r"lookup and parameter: the gradient of parameters\(\)\[0\]",
        ),
        (lopsided(decay=hasty_decay), "decay promises a rate of .* on the left of head 0"),
        (
            CappedALiBi(too_much),
            r"parameter: the gradient of parameters\(\)\[0\] is off .* at \[., 1\]",
        ),
        (
            CappedALiBi(nothing),
            r"parameter: the gradient of parameters\(\)\[0\] is off .* at \[., 1\]",
        ),
        (BrokenOff(), "decay promises a rate of 0.1 on the"),
        (Faint(torch.tensor([[1e-5, 0.0], [0.1, 0.0]])), "Faint: score is off by .* at head 0"),
        (lopsided(flat=True), "promises a bias that is flat"),
        (AsymmetricALiBi(torch.rand(2, 2)), "nothing in parameters.* requires a gradient"),
    ],
)
def test_what_is_wrong_is_named(bias: Any, message: str, device: str) -> None:
    with pytest.raises(InputError, match=message):
        check_score_bias(bias, device=device)


def test_without_a_device_that_serves_it_says_why() -> None:
    """And does not ask torch for a tensor there, which ends in torch's own AssertionError."""
    if not torch.cuda.is_available():
        with pytest.raises(BackendError, match="check_score_bias: torch sees no CUDA"):
            check_score_bias(SoftCap(2))
    with pytest.raises(BackendError, match="do not serve meta tensors"):
        check_score_bias(SoftCap(2), device="meta")
    with pytest.raises(InputError, match="span must be at least 96, got 5"):
        check_score_bias(SoftCap(2), span=5, device="cpu")


def test_how_many_are_looked_up_is_said() -> None:
    for n_looked in (0, 43):
        with pytest.raises(ValueError, match=f"how many of the n_learned .* got {n_looked} of 43"):
            replace(BOTH, n_looked=n_looked)
    with pytest.raises(ValueError, match="n_looked is for lookup and parameter together"):
        replace(ASYMMETRIC_ALIBI, n_looked=1)


def test_a_lookup_of_floats_is_refused(device: str) -> None:
    """The interpreter would take them; compiled, they would not be understood."""
    with pytest.raises(Exception, match="lookup must return integers"):
        check_score_bias(Clipped(2, replace(CLIPPED, lookup=float_place)), device=device)


@pytest.mark.parametrize(
    "make",
    [
        SoftCap, Clipped, lambda heads: lopsided(), TableAndSlopes,
        lambda heads: TableAndSlopes(heads, replace(BOTH, affine_from=None)),
    ],
    ids=["map", "table", "bias", "table and slopes", "table and slopes, pair by pair"],
)  # fmt: skip
def test_attention_with_it(make: Any, device: str) -> None:
    bias = make(2)
    qkv = [3 * torch.randn(200, 2, 16), *(torch.randn(200, 2, 16) for _ in range(2))]
    g, cu_seqlens = torch.randn(200, 2, 16), torch.tensor([0, 61, 200])

    def run(backend: str, dtype: torch.dtype, where: str) -> list[Tensor]:
        inputs = [x.to(where, dtype).requires_grad_() for x in qkv]
        out = attention(*inputs, cu_seqlens.to(where), bias=bias, backend=backend, skip_eps=0)
        assert isinstance(out, Tensor)
        leaves = [*inputs, *bias.parameters()]
        grads = torch.autograd.grad(out, leaves, g.to(where, dtype))
        return [x.detach().cpu() for x in (out, *grads)]

    if device != "cpu" and isinstance(bias, nn.Module):
        bias.to(device)
    elif device != "cpu":
        pytest.skip("slopes are made on the CPU")
    naive, oracle = (run("reference", dtype, device) for dtype in (torch.float32, torch.float64))
    for backend in ("triton", "torch"):
        got = run(backend, torch.float32, device)
        for i, three in enumerate(zip(got, naive, oracle, strict=True)):
            assert_right(*three, gradient=i > 0, what=f"{type(bias).__name__} {backend} {i}")


def test_a_window_may_be_written_as_a_map(device: str) -> None:
    if device != "cpu":
        pytest.skip("its reach is made on the CPU")
    check_score_bias(Window(5, 2), device=device)
    hidden = Window(5, 2)
    hidden.function = replace(WINDOW, affine_from=9)  # infinities are no sum of two numbers
    with pytest.raises(InputError, match="promises a bias that is affine"):
        check_score_bias(hidden, device=device)
    q, k, v = (torch.randn(200, 2, 16) for _ in range(3))
    cu_seqlens = torch.tensor([0, 30, 200])
    written = attention(q, k, v, cu_seqlens, bias=Window(5, 2), backend="triton")
    built_in = attention(q, k, v, cu_seqlens, window=(5, 5), backend="triton")
    torch.testing.assert_close(written, built_in, rtol=1e-5, atol=1e-5)
