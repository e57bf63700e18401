"""Batches on a CPU are filled up to few numbers of tokens where products are compiled for each."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import pyenc
from pyenc.loading import load_checkpoint
from pyenc.models import Encoder, row_counts
from pyenc.models.packing import pack
from pyenc.ops.linear import choices, onednn
from tests.conftest import GOLDEN

TEXTS = ["fox " * n for n in (80, 1, 30, 61, 7, 44)]


def test_numbers_of_tokens() -> None:
    numbers = [row_counts.rounded(n) for n in range(9000)]
    assert numbers[:65] == list(range(65))
    assert numbers[8193:] == list(range(8193, 9000))
    assert all(a <= b for a, b in itertools.pairwise(numbers))
    filled = range(65, 8193)
    assert all(n <= numbers[n] <= n + n / 16 for n in filled)
    assert all(numbers[n] <= n + n / 64 for n in filled if n > 256)
    assert all(numbers[numbers[n]] == numbers[n] for n in filled)
    assert len({numbers[n] for n in filled}) == 368


@pytest.mark.parametrize("lengths", [[70, 2, 1], [3] * 60, [1] * 130, [2000, 117], [64], [4096]])
def test_what_is_added(lengths: list[int]) -> None:
    bounds = torch.tensor([0, *lengths]).cumsum(0)
    ids = torch.arange(sum(lengths))
    more, ends = row_counts.filled(ids, bounds, 7)
    assert len(more) == ends[-1] == row_counts.rounded(len(ids))
    assert torch.equal(more[: len(ids)], ids)
    assert set(more[len(ids) :].tolist()) <= {7}
    assert torch.equal(ends[: len(bounds)], bounds)
    added = ends.diff()[len(lengths) :].tolist()
    assert all(1 <= n <= max(lengths) for n in added)


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Tokens of the batches that an encoder was given, where all products are compiled."""
    tokens: list[int] = []
    own = Encoder.forward_packed

    def noting(self: Encoder, ids: Tensor, *given: Any, **named: Any) -> Tensor:
        tokens.append(len(ids))
        return own(self, ids, *given, **named)

    monkeypatch.setattr(Encoder, "forward_packed", noting)
    monkeypatch.setattr(onednn, "compiles", lambda dtype: True)
    return tokens


@pytest.mark.parametrize(
    "name", ["bert_mean_h4", "jina_geglu_h4", "t5_mean_relu_h4", "qwen3_embed_like_h4"]
)
@pytest.mark.parametrize("pooling", ["mean", "cls", "lasttoken", "max"])
def test_vectors_are_those_of_the_texts(
    name: str, pooling: str, seen: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = pyenc.load(GOLDEN / name, tokenizer=GOLDEN / "bert_mean_h4", pooling=pooling)
    made = encoder.encode(TEXTS)
    (states, spans), *_ = encoder.encode(TEXTS, output="tokens")
    assert set(seen) == {row_counts.rounded(n) for n in seen}
    assert len(states) == len(spans)
    filled = list(seen)
    monkeypatch.setattr(onednn, "compiles", lambda dtype: False)
    plain = encoder.encode(TEXTS)
    assert seen[-1] < filled[0]
    np.testing.assert_allclose(made, plain, atol=2e-6)
    np.testing.assert_allclose(states, encoder.encode(TEXTS, output="tokens")[0].vectors, atol=2e-6)


@pytest.mark.parametrize("arrangement", ["right", "left", "holes", "none"])
@pytest.mark.parametrize(
    "name", ["bert_mean_h4", "xlmr_bge_m3_like_h4", "deberta_v3_like_h4", "modernbert_gte_like_h4"]
)
def test_padded_rows(
    name: str, arrangement: str, seen: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The states of all layers too, with token types and with positions counted from padding."""
    encoder = load_checkpoint(GOLDEN / name).encoder
    ids = torch.randint(5, 100, (5, 37))
    mask = (torch.arange(37) < torch.tensor([37, 1, 20, 9, 30])[:, None]).long()
    mask = {"right": mask, "left": mask.flip(1), "none": torch.ones_like(mask)}.get(
        arrangement, mask * (torch.rand(mask.shape) < 0.8)
    )
    types = torch.zeros_like(ids) if name.startswith("bert") else None
    packed = pack(ids, mask, types, encoder.config.padding_id)

    def run() -> list[Tensor]:
        states: list[Tensor] = []
        with torch.no_grad():
            hidden = encoder.hidden(packed, states)
            return [encoder(ids, mask, types), hidden, *states]

    made = run()
    tokens = int(mask.sum())
    assert set(seen) == {row_counts.rounded(tokens)}
    assert {len(state) for state in made[1:]} == {tokens}
    monkeypatch.setattr(onednn, "compiles", lambda dtype: False)
    for one, other in zip(made, run(), strict=True):
        torch.testing.assert_close(one, other, atol=2e-6, rtol=1e-5)
    assert seen[-1] == tokens


def test_with_gradients_batches_are_as_they_are(seen: list[int]) -> None:
    encoder = load_checkpoint(GOLDEN / "bert_mean_h4").encoder
    ids = torch.randint(5, 100, (3, 35))
    encoder(ids).sum().backward()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        encoder(ids)
    assert seen == [105, 105]


def test_who_listens_sees_the_tokens_that_there_are(seen: list[int]) -> None:
    encoder = pyenc.load(GOLDEN / "bert_mean_h4")
    encoder.encode(TEXTS)
    heard: list[int] = []
    encoder.model.layers[0].register_forward_hook(lambda m, args, out: heard.append(len(out)))
    encoder.encode(TEXTS)
    assert seen[0] > seen[1] == heard[0]


def test_only_what_lies_on_a_cpu_is_filled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onednn, "compiles", lambda dtype: True)
    model = load_checkpoint(GOLDEN / "bert_mean_h4").encoder
    assert row_counts.pays(model, 70)
    assert not row_counts.pays(model.to("meta"), 70)
    assert not row_counts.pays(torch.nn.Identity(), 70)


def test_whose_products_are_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    def says(
        gains: dict[str, float | bool], of_float: dict[str, float | bool] | None = None
    ) -> None:
        chosen = {torch.bfloat16: gains, torch.float32: of_float or {}}
        monkeypatch.setattr(
            choices, "choice", lambda dtype: choices.Choice("here", "said", chosen[dtype])
        )

    monkeypatch.delenv(onednn.VARIABLE, raising=False)
    monkeypatch.setattr(onednn, "unavailable", lambda dtype: None)
    half, single = torch.bfloat16, torch.float32
    says({}, {})
    assert (onednn.compiles(half), onednn.compiles(single)) == (True, False)
    says({"amx": 1.3}, {"onednn": 2.0})
    assert (onednn.compiles(half), onednn.compiles(single)) == (False, True)
    says({"wide": 9.0}, {"forward": 1.1})
    assert onednn.compiles(half)
    says({"wide": 9.0}, {})
    assert not onednn.compiles(half)
    monkeypatch.setenv(onednn.VARIABLE, "onednn")
    assert onednn.compiles(single)
    monkeypatch.setattr(onednn, "unavailable", lambda dtype: "it is off")
    assert not onednn.compiles(single)
