"""What of a weight is looked at before its pack is used again."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable

import pytest
import torch
from torch import nn

from pyenc.ops.linear import packs

SHAPES = [(3072, 768), (768, 3072), (30522, 384), (1, 7), (7, 1), (2, 4096), (1000, 1000), (97, 89)]


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_every_row_and_column_is_met(shape: tuple[int, int], turned: bool) -> None:
    """One that is written through `.data`, which counts no version, does not get past it."""
    places = torch.arange(shape[0] * shape[1]).view(shape)
    met = packs._sample(places.t() if turned else places)
    assert len((met // shape[1]).unique()) == shape[0]
    assert len((met % shape[1]).unique()) == shape[1]
    assert len(met) >= min(packs.SAMPLE, places.numel())
    assert len(met) <= 2 * max(packs.SAMPLE, *shape)


def test_a_row_set_to_zero_is_seen() -> None:
    weight = nn.Parameter(torch.randn(600, 300), requires_grad=False)
    made: list[int] = []

    def pack(w: torch.Tensor) -> torch.Tensor:
        made.append(1)
        return w.clone()

    for _ in range(2):
        packs.packed(weight, pack)
    for row in range(0, 600, 37):
        weight.data[row].zero_()
        assert torch.equal(packs.packed(weight, pack), weight)
    assert len(made) == 1 + len(range(0, 600, 37))


def kept_anew(weight: torch.Tensor, change: Callable[[], object]) -> None:
    """What is kept of a weight after a change of it is made of what it holds then."""
    packs.packed(weight, torch.clone)
    assert packs.kept(weight, torch.clone) is not None
    change()
    assert packs.kept(weight, torch.clone) is None
    assert torch.equal(packs.packed(weight, torch.clone), weight)


def test_one_value_written_in_place_is_seen() -> None:
    """By the version that it counts: most are not looked at."""
    weight = torch.zeros(300, 200)
    unseen = torch.ones_like(weight)
    packs._sample(unseen).zero_()
    for row, column in unseen.nonzero()[::4999].tolist():
        kept_anew(weight, functools.partial(weight[row, column].fill_, 1))


def test_another_place_in_the_same_memory_is_seen() -> None:
    """Though what is looked at is the same there."""
    memory = torch.zeros(301, 200)
    weight = nn.Parameter(memory[:-1], requires_grad=False)
    unseen = torch.ones_like(weight)
    packs._sample(unseen).zero_()
    row, column = unseen.nonzero()[99].tolist()
    memory[row + 1, column] = 1

    def change() -> None:
        weight.data = memory[1:]

    kept_anew(weight, change)
    assert weight[row, column] == 1


def test_a_weight_that_is_turned_is_seen() -> None:
    """The same numbers lie there in the same order."""
    weight = nn.Parameter(torch.randn(50, 50), requires_grad=False)
    kept_anew(weight, lambda: setattr(weight, "data", weight.data.t()))


def test_the_same_bits_as_other_numbers_are_seen() -> None:
    weight = nn.Parameter(torch.randn(5, 3).bfloat16(), requires_grad=False)
    kept_anew(weight, lambda: setattr(weight, "data", weight.data.view(torch.float16)))


def test_all_of_a_bias_is_looked_at() -> None:
    bias = torch.zeros(5000)
    for place in range(0, 5000, 499):
        kept_anew(bias, functools.partial(bias.numpy().__setitem__, place, 1))


def test_a_pack_goes_with_its_weight_though_the_memory_stays() -> None:
    packs.forget_all()
    memory = torch.ones(6, 5)
    weight = memory[1:]
    packs.packed(weight, torch.clone)
    assert packs.held() == weight.nbytes
    del weight
    assert packs.held() == 0


def test_no_pack_holds_a_graph() -> None:
    assert not packs.packed(nn.Parameter(torch.ones(3, 5)), torch.clone).requires_grad


def test_what_is_written_while_a_pack_is_made_is_seen() -> None:
    weight = torch.ones(3, 5)

    def pack(w: torch.Tensor) -> torch.Tensor:
        made = w.clone()
        if made[0, 0] == 1:
            weight.fill_(2)  # as another thread may
        return made

    packs.packed(weight, pack)
    assert torch.equal(packs.packed(weight, pack), weight)


def test_there_are_never_two_of_one_weight() -> None:
    weight, other = torch.ones(3, 5), torch.ones(7)
    packs.forget_all()
    packs.packed(other, torch.clone)
    held = []

    def pack(w: torch.Tensor) -> torch.Tensor:
        held.append(packs.held())
        return w.clone()

    for _ in range(3):
        packs.packed(weight, pack)
        weight.add_(1)
    assert held == [other.nbytes] * 3


def test_who_makes_a_pack_may_ask_for_another() -> None:
    weight, other = torch.ones(3, 5), torch.ones(7)
    made = threading.Thread(
        target=packs.packed,
        args=(weight, lambda w: w + packs.packed(other, torch.clone).sum()),
        daemon=True,
    )
    made.start()
    made.join(60)
    assert not made.is_alive()
