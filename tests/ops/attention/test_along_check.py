"""`check_score_bias` of a bias with `along`: what is wrong with it is found and named."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pyenc.errors import InputError
from pyenc.ops import check_score_bias
from pyenc.ops.attention.score_check import _torch_form


class Log(nn.Module):
    """-slope log(1 + |j - i|), by distance and pair by pair; subclasses are wrong in one place."""

    def __init__(self) -> None:
        super().__init__()
        self.slope = nn.Parameter(torch.tensor([0.5, 2.0]))

    def along(self, offsets: Tensor) -> Tensor:
        return -self.slope[:, None] * offsets.abs().float().log1p()

    def block(self, i: Tensor, j: Tensor) -> Tensor:
        return -self.slope[:, None, None] * (i[:, None] - j).abs().float().log1p()


class Alone(nn.Module):
    def along(self, offsets: Tensor) -> Tensor:
        return -offsets.abs().float()[None]


class Turned(Log):
    def along(self, offsets: Tensor) -> Tensor:
        return super().along(offsets) * torch.where(offsets > 100, 0.99, 1.0)


class Relative(Log):
    """Its numbers depend on what else is asked for."""

    def along(self, offsets: Tensor) -> Tensor:
        return super().along(offsets) / offsets.abs().max()


class Detached(Log):
    def along(self, offsets: Tensor) -> Tensor:
        return super().along(offsets).detach()


class Halved(Log):
    def along(self, offsets: Tensor) -> Tensor:
        whole = super().along(offsets)
        return whole / 2 + whole.detach() / 2


class Broken(Log):
    def along(self, offsets: Tensor) -> Tensor:
        return super().along(offsets).masked_fill(offsets == -77, float("nan"))


class Flat(Log):
    def along(self, offsets: Tensor) -> Tensor:
        return super().along(offsets)[0]


class Capped(Log):
    """A map that is no addition has no `along`."""

    def score(self, s: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return 3 * ((s + self.block(i, j)) / 3).tanh()


class Over(Log):
    """As an addition that is written over the scores."""

    def score(self, s: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return s.add_(self.block(i, j))


class Grown(Log):
    """A hundredth of the scores more, which far numbers would hide."""

    def along(self, offsets: Tensor) -> Tensor:
        return -self.slope[:, None] * offsets.abs()

    def score(self, s: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return 1.01 * s - self.slope[:, None, None] * (i[:, None] - j).abs()


class Hides(Log):
    """-inf beyond a distance, in both forms."""

    def along(self, offsets: Tensor) -> Tensor:
        return super().along(offsets).masked_fill(offsets > 50, float("-inf"))

    def block(self, i: Tensor, j: Tensor) -> Tensor:
        return super().block(i, j).masked_fill(j - i[:, None] > 50, float("-inf"))


def test_what_is_right_passes() -> None:
    """And needs no device."""
    assert check_score_bias(Log()) == (
        "Log: along (gradients of 1 tensors) agree with the torch form on 2560 pairs a head, at "
        "distances up to 8191"
    )
    assert "Alone: along agree" in check_score_bias(Alone(), span=200)
    check_score_bias(Hides())
    check_score_bias(Over())


@pytest.mark.parametrize(
    ("bias", "message"),
    [
        (Turned(), r"Turned: along is off by up to .* the torch form \(block\), it is"),
        (Relative(), "Relative: along is off by .* asked for other distances, it is"),
        (Detached(), "Detached: along gives no gradient"),
        (Halved(), r"Halved: along gives parameters\(\)\[0\] a gradient that is off by"),
        (Broken(), "Broken: along gives nan for head 0 at distance -77"),
        (Flat(), r"Flat: along must give \(H, 16383\); got \(16383,\)"),
        (Capped(), r"Capped: along is off by .* the torch form \(score\), it is"),
        (Grown(), "Grown: score adds .* to a score of .* and .* along says what is added to any"),
    ],
)
def test_what_is_wrong_is_named(bias: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        check_score_bias(bias)


def test_nothing_to_check() -> None:
    class Bare:
        def block(self, i: Tensor, j: Tensor) -> Tensor:
            return (i[:, None] - j)[None].float()

    with pytest.raises(InputError, match="Bare has neither along"):
        check_score_bias(Bare())


def test_the_torch_form_of_a_map_that_writes_over_its_scores() -> None:
    s = torch.zeros(2, 1, 3, dtype=torch.float64, requires_grad=True)
    at = torch.arange(3)
    bias = Over()
    made = _torch_form(bias, s, at[:1], at, torch.zeros(2, 1))
    torch.testing.assert_close(made, bias.block(at[:1], at).double().expand_as(made))
    assert torch.equal(torch.autograd.grad(made.sum(), s)[0], torch.ones_like(s))
    assert not s.any()
