"""Biases of one's own with kernels, right and wrong ones, that the tests beside this file try."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor, nn

from pyenc.ops import AsymmetricALiBi
from pyenc_kernels.score_function import ASYMMETRIC_ALIBI, ScoreFunction


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
