"""Of which modules rows of distances are kept, and what their digits go by."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from pyenc.models import Disentangled, kept_rows
from pyenc.ops import extension
from pyenc.ops.linear import packs
from tests.models.test_kept_rows import WIDE, answer, attention, cold, encoder_of, twice, unkept


@pytest.fixture(autouse=True)
def _nothing_kept() -> Iterator[None]:
    packs.forget_all()
    yield
    packs.forget_all()


@pytest.mark.parametrize(
    "norm",
    [
        {"norm": "rms"}, {"norm": "rms", "norm_plus_one": True}, {"norm_plus_one": True},
        {"norm_bias": False},
    ],
    ids=str,
)  # fmt: skip
def test_norms_of_the_table(norm: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is made of its weight before it multiplies."""
    encoder = encoder_of(dataclasses.replace(WIDE, **norm), torch.float64)
    found = answer(encoder)
    right = unkept(encoder, monkeypatch)
    torch.testing.assert_close(found, right, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("change", ["threads", "extension"])
def test_what_the_digits_of_a_product_go_by(change: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Here they say so themselves."""
    product, norm = kept_rows.linear, kept_rows.add_layer_norm

    def digits() -> float:
        return torch.get_num_threads() + 1 / (1 + (extension.missing() is None))

    monkeypatch.setattr(kept_rows, "linear", lambda *a, **b: product(*a, **b) * digits())
    monkeypatch.setattr(
        kept_rows, "add_layer_norm", lambda *a, **b: [norm(*a, **b)[0] * (digits() % 1)]
    )
    encoder = encoder_of(dtype=torch.float64)
    threads, before = torch.get_num_threads(), answer(encoder)
    try:
        if change == "threads":
            torch.set_num_threads(threads + 1)
        else:
            there = "not here" if extension.missing() is None else None
            monkeypatch.setattr(extension, "missing", lambda: there)
        found = answer(encoder)
        assert torch.equal(found, cold(encoder))
        assert not torch.equal(found, before)
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize(
    ("which", "name"),
    [
        ("projection", "weight"), ("projection", "bias"), ("norm", "weight"), ("norm", "bias"),
        ("table", "weight"),
    ],
)  # fmt: skip
def test_what_is_no_parameter(which: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tensor that somebody has put in its place counts, and so does what he does to it."""
    encoder = encoder_of(dtype=torch.float64)
    distances: Any = encoder.distances
    module = {
        "projection": attention(encoder).qkv, "norm": distances.norm, "table": distances.table,
    }[which]  # fmt: skip
    before = answer(encoder)
    given = getattr(module, name).detach().clone()
    delattr(module, name)
    setattr(module, name, given.flip(0))
    found = answer(encoder)
    torch.testing.assert_close(found, unkept(encoder, monkeypatch), rtol=1e-11, atol=1e-11)
    assert not torch.allclose(found, before)


@pytest.mark.parametrize("part", ["query", "key"])
def test_a_part_that_is_listened_to(part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside one whose rows are kept."""
    kind = Disentangled(64, shared=False)
    encoder = encoder_of(dataclasses.replace(WIDE, disentangled=kind), torch.float64)
    before = answer(encoder)
    assert packs.held() > 0
    getattr(attention(encoder).distances, part).register_forward_hook(twice)
    found = answer(encoder)
    torch.testing.assert_close(found, unkept(encoder, monkeypatch), rtol=1e-11, atol=1e-11)
    assert not torch.allclose(found, before)
