"""Who looks at a SparseEncoder's logits or states while it encodes finds them padded, as they were;
the greatest alone are made where nobody does."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

pytest.importorskip("sentence_transformers")

from sentence_transformers import SparseEncoder
from sentence_transformers.sparse_encoder.modules import SpladePooling

from pyenc.integrations.sentence_transformers import AccelerationWarning, accelerate
from pyenc.integrations.sentence_transformers import splade as splade_module
from tests.integrations.sentence_transformers.headed import PAIRS, reranker, splade
from tests.integrations.sentence_transformers.models import TEXTS
from tests.integrations.sentence_transformers.test_answers import is_accelerated, off
from tests.integrations.sentence_transformers.test_headed_refused import refused
from tests.integrations.sentence_transformers.test_sparse_encoders import near

Shapes = list[tuple[int, ...]]


def scored(features: Any) -> torch.Tensor:
    """A mean over logits of tokens (B, N, V), beside the vectors."""
    mask = features["attention_mask"][..., None]
    return (features["token_embeddings"].clone() * mask).sum(1) / mask.sum(1)


def add(features: Any, more: torch.Tensor) -> Any:
    features["sentence_embedding"] = features["sentence_embedding"] + more
    return features


class Third(torch.nn.Module):
    """Behind the pooling."""

    def forward(self, features: Any) -> Any:
        # How many they are: those of padding are other numbers.
        return add(features, torch.tensor(float(features["token_embeddings"].shape[1])))


class Whole(SparseEncoder):
    def forward(self, features: Any, **_: Any) -> Any:
        features = self[0](features)
        more = scored(features)
        return add(self[1](features), more)


class Own(SparseEncoder):
    def encode(self, texts: Any, **_: Any) -> Any:
        with torch.no_grad():
            return scored(self[0](self.preprocess(texts)))


def third(model: Any) -> None:
    model.append(Third())


def hook_on_the_model(model: Any) -> None:
    def hook(_: Any, __: Any, features: Any) -> None:
        Third()(features)

    model.register_forward_hook(hook)


def forward_of_the_model(model: Any) -> None:
    plain = model.forward
    model.forward = lambda *given, **named: Third()(plain(*given, **named))


def forward_of_the_first(model: Any) -> None:
    plain = model[0].forward

    def forward(*given: Any, **named: Any) -> Any:
        features = plain(*given, **named)
        features["token_embeddings"] = features["token_embeddings"] + scored(features)[:, None]
        return features

    model[0].forward = forward


def forward_of_the_pooling(model: Any) -> None:
    plain = model[1].forward

    def forward(features: Any) -> Any:
        more = scored(features)
        return add(plain(features), more)

    model[1].forward = forward


def hook_in_the_head(model: Any) -> None:
    model[0].model.cls.predictions.transform.register_forward_hook(
        lambda _, __, states: states + states[:, :1]
    )


def forward_in_the_head(model: Any) -> None:
    plain = model[0].model.cls.forward
    model[0].model.cls.forward = lambda states: plain(states + states[:, :1])


def hook_beneath_the_head(model: Any) -> None:
    def hook(_: Any, __: Any, answer: Any) -> Any:
        states = answer.last_hidden_state
        answer.last_hidden_state = states + states[:, :1]
        return answer

    model[0].model.bert.register_forward_hook(hook)


def labels(model: Any) -> None:
    plain = model.preprocess

    def preprocess(*given: Any, **named: Any) -> Any:
        features = plain(*given, **named)
        features["labels"] = features["input_ids"].clone()
        return features

    model.preprocess = preprocess


@pytest.mark.parametrize(
    "looks",
    [
        third, hook_on_the_model, forward_of_the_model, forward_of_the_first,
        forward_of_the_pooling, hook_in_the_head, forward_in_the_head, hook_beneath_the_head,
        labels,
    ],
)  # fmt: skip
def test_set_later(looks: Callable[[Any], None], pooled: Shapes, packed: list[Any]) -> None:
    plain = splade("bert_mean_h4")
    ours = accelerate(copy.deepcopy(plain))
    before = plain.encode(TEXTS)
    assert near(before, ours.encode(TEXTS))
    assert pooled[-1][1] == 1
    looks(plain)
    looks(ours)
    right = plain.encode(TEXTS)
    assert looks is labels or not near(before, right)
    pooled.clear()
    packed.clear()
    assert near(right, ours.encode(TEXTS))
    assert [shape[1] > 1 for shape in pooled] == [True]
    assert len(packed) == 1


@pytest.mark.parametrize("looks", [third, hook_on_the_model, hook_in_the_head])
def test_set_in_the_middle(looks: Callable[[Any], None], pooled: Shapes) -> None:
    """Of an `encode`: between two batches."""
    plain = splade("bert_mean_h4")
    ours = accelerate(copy.deepcopy(plain))
    before = plain.encode(TEXTS)
    for model in (plain, ours):

        def preprocess(*given: Any, _model: Any = model, **named: Any) -> Any:
            if len(pooled) == 1:
                looks(_model)
            return type(_model).preprocess(_model, *given, **named)

        model.preprocess = preprocess
    found = []
    for model in (plain, ours):
        pooled.clear()
        found.append(model.encode(TEXTS, batch_size=5))
    assert not near(before, found[0])
    assert near(*found)
    assert [shape[1] > 1 for shape in pooled] == [False, True]


@pytest.mark.parametrize("kind", [Whole, Own])
def test_a_subclass(kind: Any, packed: list[Any]) -> None:
    plain = splade("bert_mean_h4")
    plain.__class__ = kind
    ours = accelerate(copy.deepcopy(plain))
    assert near(plain.encode(TEXTS), ours.encode(TEXTS))
    assert packed
    assert type(ours.restore()) is kind


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_numbers_that_are_not_finite(number: float, pooled: Shapes) -> None:
    """Masked they are no zeros, so that padding counts: with one text, or several, as it was."""
    plain = splade("bert_mean_h4")
    ours = accelerate(copy.deepcopy(plain))
    for model in (plain, ours):
        with torch.no_grad():
            model[0].model.cls.predictions.bias[7] = number
    for texts in (TEXTS, TEXTS[3]):
        pooled.clear()
        right, found = (m.encode(texts).to_dense() for m in (plain, ours))
        torch.testing.assert_close(found, right, rtol=1e-4, atol=1e-4, equal_nan=True)
        assert pooled[0] == pooled[1]
    refused(plain, "of two short texts, or of the zeros of their padding, that are not finite")


def changing(model: Any) -> list[str]:
    """Its forward does what the last of the list says, from then on."""
    now = [""]
    inner = model[0].model
    own = type(inner)

    def forward(self: Any, input_ids: Any, attention_mask: Any = None, **said: Any) -> Any:
        if now[-1] == "raises":
            raise RuntimeError("in the middle")
        if now[-1] == "raises next":
            now.append("raises")
        if now[-1] == "hands on others":
            input_ids = input_ids.clone()
        return own.forward(self, input_ids, attention_mask=attention_mask, **said)

    inner.__class__ = type("Changing", (own,), {"forward": forward})
    return now


def test_a_head_that_hands_on_others_later(pooled: Shapes) -> None:
    """Than it was given, which no look at the model tells: by its own code, and it is told."""
    plain = splade("bert_mean_h4")
    now = changing(plain)
    ours = accelerate(copy.deepcopy(plain))
    right = plain.encode(TEXTS)
    assert near(right, ours.encode(TEXTS))
    assert pooled[-1][1] == 1
    now.append("hands on others")
    with pytest.warns(AccelerationWarning, match="beneath its head is given other tensors") as told:
        found = [ours.encode(TEXTS) for _ in range(2)]
    assert len(told) == 1
    assert pooled[-1][1] > 1
    assert all(off(right.to_dense(), each.to_dense()) == 0 for each in found)


@pytest.mark.parametrize("ends", [True, False])
def test_features_that_are_kept(ends: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """By who makes them: what is not their logits is not found under that name, whether the head
    came to its end or not."""
    monkeypatch.setattr(splade_module, "TOKENS", 1)  # so that there is a middle
    model = splade("bert_mean_h4")
    now = changing(model)
    accelerate(model)
    kept: list[dict[str, Any]] = []
    plain = model.preprocess

    def preprocess(*given: Any, **named: Any) -> Any:
        kept.append(plain(*given, **named))
        return kept[-1]

    model.preprocess = preprocess
    if ends:
        model.encode(TEXTS)
    else:
        now.append("raises next")
        with pytest.raises(RuntimeError, match="in the middle"):
            model.encode(TEXTS)
    assert len(kept) == 1
    assert "input_ids" in kept[0]
    assert "token_embeddings" not in kept[0]


def test_in_a_worker(pooled: Shapes) -> None:
    """Of `start_multi_process_pool`, which calls no `encode`."""
    plain = splade("bert_mean_h4")
    ours = accelerate(copy.deepcopy(plain))
    said = {
        "prompt": None, "batch_size": 32, "show_progress_bar": False, "save_to_cpu": True,
        "convert_to_sparse_tensor": True, "max_active_dims": None,
    }  # fmt: skip
    if not hasattr(SparseEncoder, "_inference"):
        pytest.skip("the workers of this sentence-transformers call encode")
    right = plain.encode(TEXTS)
    pooled.clear()
    assert is_accelerated(ours)
    assert near(right, ours._inference(TEXTS, device="cpu", **said))
    assert [shape[1] for shape in pooled] == [1]


def test_a_text_without_tokens(pooled: Shapes) -> None:
    """As of tokenizers that put nothing around it: zeros, among others and alone."""
    plain = splade("bert_mean_h4")
    ours = accelerate(copy.deepcopy(plain))

    def without(model: Any, *rows: int) -> None:
        own = type(model).preprocess

        def preprocess(*given: Any, **named: Any) -> Any:
            features = own(model, *given, **named)
            features["attention_mask"][list(rows)] = 0
            return features

        model.preprocess = preprocess

    for rows in ((0,), (2, 3), (len(TEXTS) - 1,), range(len(TEXTS))):
        for model in (plain, ours):
            without(model, *rows)
        for tokens in (1, 10_000):
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(splade_module, "TOKENS", tokens)
                pooled.clear()
                right, found = (m.encode(TEXTS) for m in (plain, ours))
            assert near(right, found)
            assert int((right.to_dense() == 0).all(1).sum()) == len(rows)
            assert [shape[1] > 1 for shape in pooled] == [True, len(rows) == len(TEXTS)]


@pytest.mark.parametrize("what", [splade, reranker])
def test_another_class_of_the_whole(what: Any) -> None:
    """Whose forward does something else with the logits."""
    plain = what("bert_mean_h4")
    ours = accelerate(copy.deepcopy(plain))
    verb = "encode" if what is splade else "predict"
    texts = TEXTS if what is splade else PAIRS
    found = []
    for model in (plain, ours):
        before = torch.as_tensor(getattr(model, verb)(texts))
        inner = model[0].model
        own = type(inner)

        def forward(self: Any, *args: Any, _own: Any = own, **kwargs: Any) -> Any:
            answer = _own.forward(self, *args, **kwargs)
            answer.logits = answer.logits + answer.logits.flip(-1)[:, :1]
            return answer

        inner.__class__ = type("Mine", (own,), {"forward": forward})
        found.append(torch.as_tensor(getattr(model, verb)(texts)))
        dense = [x.to_dense() if x.is_sparse else x for x in (before, found[-1])]
        assert off(*dense) > 0.01
    assert near(*found)


def test_another_pooling(pooled: Shapes, packed: list[Any]) -> None:
    """Put in the place of the one that was accelerated."""
    plain = splade("bert_mean_h4")
    ours = accelerate(copy.deepcopy(plain))
    right = plain.encode(TEXTS)
    ours[1] = SpladePooling()
    pooled.clear()
    assert near(right, ours.encode(TEXTS))
    assert [shape[1] > 1 for shape in pooled] == [True]
    assert packed
