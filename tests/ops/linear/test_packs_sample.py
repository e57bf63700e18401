"""What of a weight is looked at before its pack is used again."""

from __future__ import annotations

import pytest
import torch

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
    weight = torch.nn.Parameter(torch.randn(600, 300), requires_grad=False)
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
