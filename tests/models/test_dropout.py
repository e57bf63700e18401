"""Dropout of whole encoders in training: repeatable, unbiased, and off in `eval`."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from pyenc import use_backend
from pyenc.errors import BackendError, InputError
from pyenc.models import Encoder, EncoderConfig
from pyenc.models import feed_forward as module
from tests.models.shapes import ABSOLUTE, ALIBI, PRE_NORM, SHAPES, WINDOWS

Drop = Callable[[Encoder, float], None]

BATCH = 700
"""Draws at a time: a sequence each."""


def encoder_of(config: EncoderConfig, **dropouts: Any) -> Encoder:
    torch.manual_seed(11)
    encoder = Encoder(dataclasses.replace(config, **dropouts), skip_eps=0)
    for parameter in encoder.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return encoder.train()


def loss_and_gradients(encoder: Encoder, seed: int) -> list[Tensor]:
    ids = torch.arange(20) % 7 + 3
    torch.manual_seed(seed)
    hidden = encoder.forward_packed(ids, torch.tensor([0, 8, 9, 20]))
    loss = hidden.square().sum()
    return [hidden, *torch.autograd.grad(loss, [*encoder.parameters()])]


@pytest.mark.parametrize("config", SHAPES.values(), ids=SHAPES)
def test_a_seed_repeats(config: EncoderConfig) -> None:
    """States and every gradient, to the bit; another seed draws others, and `eval` none."""
    encoder = encoder_of(config, hidden_dropout=0.2, attention_dropout=0.2)
    first, again, other = (loss_and_gradients(encoder, seed) for seed in (5, 5, 6))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0], other[0])
    plain = encoder_of(config)
    expected = loss_and_gradients(plain.eval(), 5)
    found = loss_and_gradients(encoder.eval(), 6)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("config", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("place", ["inner", "outer", "both"])
def test_a_seed_draws_the_same_without_a_gradient(
    config: EncoderConfig, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Losses with cached gradients go through twice; without a gradient a CPU splits the rows."""
    monkeypatch.setattr(module, "CPU_BYTES", 512)
    named = {"hidden_dropout": 0.2, "attention_dropout": 0.2, "feed_forward_dropout": place}
    if config.experts is not None and place != "outer":
        with pytest.raises(InputError, match=r"experts go with .* without dropout inside"):
            encoder_of(config, **named)
        return
    encoder = encoder_of(config, **named)
    first = loss_and_gradients(encoder, 5)[0]
    with torch.no_grad():
        torch.manual_seed(5)
        again = encoder.forward_packed(torch.arange(20) % 7 + 3, torch.tensor([0, 8, 9, 20]))
    torch.testing.assert_close(again, first, rtol=1e-4, atol=1e-4)


def embeddings(encoder: Encoder, p: float) -> None:
    encoder.embeddings.dropout = p


def weights(encoder: Encoder, p: float) -> None:
    encoder.layers[0].attention.dropout = p  # type: ignore[union-attr, assignment]


def output(encoder: Encoder, p: float) -> None:
    encoder.layers[0].dropout = p  # type: ignore[assignment]


def feed_forward(encoder: Encoder, p: float) -> None:
    encoder.layers[0].feed_forward.dropout = p  # type: ignore[union-attr, assignment]


def final(encoder: Encoder, p: float) -> None:
    encoder.dropout = p


PLACES: dict[Drop, str] = {
    embeddings: "embeddings",
    weights: "layers.0.attention",
    output: "layers.0",
    feed_forward: "layers.0.feed_forward",
    final: "",
}
"""Where dropout is -> the module whose answer is linear in what was drawn there."""

BOTH = dataclasses.replace(ALIBI, feed_forward_dropout="both")


@pytest.mark.parametrize(
    ("config", "place"),
    [
        *((ABSOLUTE, place) for place in (embeddings, weights, feed_forward)),
        *((WINDOWS, place) for place in (weights, feed_forward, output)),
        (PRE_NORM, final),
        (BOTH, feed_forward),
    ],
    ids=lambda x: getattr(x, "__name__", ""),
)
@torch.no_grad()
def test_the_mean_is_what_it_is_without(config: EncoderConfig, place: Drop) -> None:
    """Of the first thing behind each place, over many draws: nothing before it is dropped."""
    encoder = encoder_of(config)
    ids = torch.tensor([5, 3, 8, 3, 9]).repeat(BATCH)
    bounds = torch.arange(BATCH + 1) * 5
    found: list[Tensor] = []

    def keep(module: torch.nn.Module, given: Any, answer: Any) -> None:
        # Under pre-norm a layer's first answer is the sum after attention.
        found.append((answer[0] if isinstance(answer, tuple) else answer).double())

    module = encoder.get_submodule(PLACES[place]) if PLACES[place] else encoder.final_norm
    if place is final:
        plain = encoder.forward_packed(ids, bounds).double()
        place(encoder, 0.3)
        drawn = encoder.forward_packed(ids, bounds).double()
    else:
        assert module is not None
        module.register_forward_hook(keep)
        encoder.forward_packed(ids, bounds)
        place(encoder, 0.3)
        encoder.forward_packed(ids, bounds)
        plain, drawn = found
    plain, drawn = plain.view(BATCH, -1), drawn.view(BATCH, -1)
    off = drawn - plain
    error = off.std(0) / BATCH**0.5
    assert (error > 0).all()
    # Of some hundred means none is six standard errors off.
    assert (off.mean(0).abs() <= 6 * error).all()
    if place in (embeddings, final):
        share = float((drawn == 0).double().mean())
        assert abs(share - 0.3) < 0.02
        assert ((drawn == 0) | ((drawn * 0.7 - plain).abs() < 1e-5)).all()


def test_rows_of_a_batch_are_dropped_apart() -> None:
    """The same text twice is not the same draw; nor are two layers one."""
    encoder = encoder_of(ABSOLUTE, attention_dropout=0.4)
    ids = torch.tensor([5, 3, 8, 3, 9, 7]).repeat(2)
    hidden = encoder.forward_packed(ids, torch.tensor([0, 6, 12]))
    assert not torch.allclose(hidden[:6], hidden[6:])


def test_the_reference_says_that_it_has_none() -> None:
    """Of attention's weights, in training, where it is asked for by name."""
    ids, bounds = torch.arange(6), torch.tensor([0, 6])
    encoder, why = encoder_of(ABSOLUTE, attention_dropout=0.1), "the oracle has no dropout"
    with use_backend("reference"), pytest.raises(BackendError, match=f"reference.*{why}"):
        encoder.forward_packed(ids, bounds)
    encoder.backend = "reference"
    with pytest.raises(BackendError, match=why):
        encoder.forward_packed(ids, bounds)
    encoder.eval().forward_packed(ids, bounds)
    encoder_of(ABSOLUTE, hidden_dropout=0.1).forward_packed(ids, bounds)


@pytest.mark.parametrize("name", ["embedding_dropout", "output_dropout", "final_dropout"])
def test_a_place_of_its_own(name: str) -> None:
    config = dataclasses.replace(PRE_NORM, hidden_dropout=0.2)
    assert config.drops
    own = dataclasses.replace(config, **{name: 0.0})
    at = {
        "embedding_dropout": lambda e: e.embeddings.dropout,
        "output_dropout": lambda e: e.layers[1].dropout,
        "final_dropout": lambda e: e.dropout,
    }
    assert [at[n](Encoder(own)) for n in at] == [0.0 if n == name else 0.2 for n in at]
    assert not dataclasses.replace(own, hidden_dropout=0.0).drops
    assert dataclasses.replace(own, hidden_dropout=0.0, **{name: 0.1}).drops
    with pytest.raises(InputError, match=rf"{name} must be in \[0, 1\)"):
        dataclasses.replace(config, **{name: 1.0})
