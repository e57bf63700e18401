"""Batches on a CPU are filled up to few numbers of tokens where products are compiled for each."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import pyenc
from pyenc.models import Encoder
from pyenc.ops.linear import choices, onednn
from pyenc.text import row_counts
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
    bounds = np.cumsum([0, *lengths])
    ids = np.arange(bounds[-1])
    more, ends = row_counts.filled(ids, bounds, 7)
    assert len(more) == ends[-1] == row_counts.rounded(len(ids))
    assert more[: len(ids)].tolist() == ids.tolist()
    assert set(more[len(ids) :].tolist()) <= {7}
    assert ends[: len(bounds)].tolist() == bounds.tolist()
    added = np.diff(ends)[len(lengths) :]
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


def test_who_listens_sees_the_tokens_that_there_are(seen: list[int]) -> None:
    encoder = pyenc.load(GOLDEN / "bert_mean_h4")
    encoder.encode(TEXTS)
    heard: list[int] = []
    encoder.model.layers[0].register_forward_hook(lambda m, args, out: heard.append(len(out)))
    encoder.encode(TEXTS)
    assert seen[0] > seen[1] == heard[0]


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
