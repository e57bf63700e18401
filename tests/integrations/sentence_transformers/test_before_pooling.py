"""Between the two modules of an accelerated model: what is changed there counts."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

pytest.importorskip("sentence_transformers")

from pyenc.integrations.sentence_transformers import accelerate
from tests.integrations.sentence_transformers.models import TEXTS
from tests.integrations.sentence_transformers.test_answers import NEAR, off

MEANS: list[Any] = [
    "mean", "weightedmean", "mean_sqrt_len_tokens", ("weightedmean", "mean_sqrt_len_tokens"),
]  # fmt: skip
"""Modes of a Pooling that are taken of packed states."""


def no_first_token(features: dict[str, Any]) -> None:
    features["attention_mask"][:, 0] = 0


def no_first_state(features: dict[str, Any]) -> None:
    features["token_embeddings"][:, 0] = 7.0


def no_mask(features: dict[str, Any]) -> None:
    del features["attention_mask"]


@pytest.mark.parametrize(
    ("change", "equal_lengths"),
    [
        (no_first_token, False), (no_first_token, True), (no_first_state, False),
        (no_first_state, True), (no_mask, True),
    ],
)  # fmt: skip
def test_what_is_changed_before_pooling(bert: Any, change: Any, equal_lengths: bool) -> None:
    """By a hook of one of the two modules, or by hand between them: in place, as anyone would."""
    texts = ["two words"] * 3 if equal_lengths else TEXTS
    plain, ours = bert, accelerate(copy.deepcopy(bert))
    as_it_is = ours.encode(texts)
    for module, hooked in (
        (0, lambda m: m.register_forward_hook(lambda _, args, out: change(out))),
        (1, lambda m: m.register_forward_pre_hook(lambda _, args: change(args[0]))),
    ):
        handles = [hooked(model[module]) for model in (plain, ours)]
        a, b = (model.encode(texts, batch_size=4) for model in (plain, ours))
        for handle in handles:
            handle.remove()
        assert off(a, b) <= NEAR
        assert off(a, as_it_is) > 0.01 or change is no_mask
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            found = [model[0](model.preprocess(texts)) for model in (plain, ours)]
            for features in found:
                change(features)
            pairs = zip((plain, ours), found, strict=True)
            a, b = (model[1](features)["sentence_embedding"] for model, features in pairs)
        assert off(a, b) <= NEAR
    assert off(ours.encode(texts), as_it_is) == 0


@pytest.mark.parametrize("mode", MEANS, ids=str)
@pytest.mark.parametrize("equal_lengths", [False, True])
def test_a_mean_of_packed_states(
    bert: Any, equal_lengths: bool, mode: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where nothing was changed before it: the pooling's own code is not run."""
    from sentence_transformers.sentence_transformer.modules import Pooling

    texts = ["two words"] * 3 if equal_lengths else TEXTS
    bert[1].pooling_mode = mode
    ours, right = accelerate(copy.deepcopy(bert)), bert.encode(texts)

    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("of padded states")

    monkeypatch.setattr(Pooling, "forward", never)
    assert off(ours.encode(texts), right) <= NEAR
    with torch.no_grad():
        found = ours(ours.preprocess(texts))["sentence_embedding"]
    assert off(found, right) <= NEAR
    with pytest.raises(AssertionError, match="of padded states"):
        bert.encode(texts)


@pytest.mark.parametrize("mode", MEANS, ids=str)
@pytest.mark.parametrize("equal_lengths", [False, True])
def test_gradients_of_padded_states(bert: Any, equal_lengths: bool, mode: Any) -> None:
    """Who asks for that of token embeddings, or hooks it, finds it as it was."""
    texts = ["two words"] * 3 if equal_lengths else TEXTS
    bert[1].pooling_mode = mode
    found = []
    for model in (bert, accelerate(copy.deepcopy(bert))):
        features = model[0](model.preprocess(texts))
        states = features["token_embeddings"]
        states.register_hook(lambda grad: grad * 0.5)
        states.retain_grad()
        weights = model[0].model.embeddings.word_embeddings.weight
        model[1](features)["sentence_embedding"].pow(2).sum().backward()
        found.append((states.grad, weights.grad))
    for theirs, ours in zip(*found, strict=True):
        assert off(theirs, ours) <= NEAR * theirs.abs().max()
        assert theirs.abs().max() > 0.01
