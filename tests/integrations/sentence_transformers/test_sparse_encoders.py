"""A SparseEncoder's masked-LM head and pooling are its own, on states of ours: SPLADE as it was."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch

pytest.importorskip("sentence_transformers")

from pyenc.integrations.sentence_transformers import accelerate, restore
from pyenc.integrations.sentence_transformers import splade as splade_module
from tests.integrations.sentence_transformers.headed import MASKED, splade, without_dropout
from tests.integrations.sentence_transformers.models import TEXTS, loaded
from tests.integrations.sentence_transformers.test_answers import NEAR, Pair, is_accelerated, off

NAMES = ("bert_mean_h4", "distilbert_h4")


def both(name: str) -> Pair:
    plain = splade(name)
    return plain, accelerate(copy.deepcopy(plain))


def near(a: torch.Tensor, b: torch.Tensor) -> bool:
    a, b = (x.to_dense() if x.is_sparse else x for x in (a, b))
    return off(a, b) <= NEAR * max(1, float(a.abs().max()))


@pytest.mark.parametrize("batch_size", [1, 3, 32])
@pytest.mark.parametrize("name", MASKED)
def test_vectors(name: str, batch_size: int, packed: list[Any]) -> None:
    plain, ours = both(name)
    a, b = (m.encode(TEXTS, batch_size=batch_size) for m in (plain, ours))
    assert len(packed) == -(-len(TEXTS) // batch_size)
    assert a.is_sparse
    assert b.is_sparse
    assert near(a, b)
    zeros = float((a.to_dense() == 0).float().mean())
    assert 0.05 < zeros < 0.999, "neither empty nor full"
    # Words that are in one vector and not in the other are hardly in it.
    differing = (a.to_dense() == 0) != (b.to_dense() == 0)
    assert float((a.to_dense() + b.to_dense())[differing].sum()) <= 1e-3


@pytest.mark.parametrize("name", MASKED)
def test_the_encoder_is_ours(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plain, ours = both(name)
    right = plain.encode(TEXTS)

    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("the model's own layers were run")

    monkeypatch.setattr(type(plain[0].model.base_model), "forward", never)
    assert near(right, ours.encode(TEXTS))
    with pytest.raises(AssertionError, match="own layers"):
        plain.encode(TEXTS)


@pytest.mark.parametrize("name", NAMES)
def test_verbs(name: str) -> None:
    models = both(name)
    scores = [m.similarity(m.encode_query(TEXTS[:3]), m.encode_document(TEXTS)) for m in models]
    assert near(*scores)
    assert near(*(m.encode(TEXTS[3]) for m in models))
    assert near(*(m.encode(TEXTS, convert_to_sparse_tensor=False) for m in models))
    assert near(*(m.encode(TEXTS, max_active_dims=7) for m in models))
    words = [dict(m.decode(m.encode(TEXTS[3]), top_k=5)) for m in models]
    assert words[0].keys() == words[1].keys()


@pytest.mark.parametrize("strategy", ["max", "sum"])
@pytest.mark.parametrize("side", ["right", "left"])
def test_every_mask(side: str, strategy: str, packed: list[Any]) -> None:
    """The head takes each place by itself, so what is masked is masked anywhere."""
    models = both("bert_mean_h4")
    found = []
    for model in models:
        model[1].pooling_strategy = strategy
        model.tokenizer.padding_side = side
        features = dict(model.preprocess(TEXTS))
        features["attention_mask"][:, 3] = 0
        features["attention_mask"][1] = 0
        with torch.no_grad():
            found.append(model(features)["sentence_embedding"])
    assert len(packed) == 1
    assert near(*found)


def test_features_that_passed_once(packed: list[Any]) -> None:
    """What an earlier pass left in them is no input."""
    models = both("bert_mean_h4")
    found = []
    for model in models:
        features = dict(model.preprocess(TEXTS))
        with torch.no_grad():
            model(features)
            found.append(model(features)["sentence_embedding"])
    assert len(packed) == 2
    assert near(*found)


def test_the_module_of_older_files(packed: list[Any]) -> None:
    """MLMTransformer, by which published SPLADE models say it."""
    from sentence_transformers import SparseEncoder
    from sentence_transformers.sparse_encoder.modules import MLMTransformer, SpladePooling

    folder = splade("distilbert_h4")[0].model.config._name_or_path
    plain = SparseEncoder(modules=[MLMTransformer(folder), SpladePooling()], device="cpu")
    plain = copy.deepcopy(plain.eval())
    ours = accelerate(copy.deepcopy(plain))
    assert is_accelerated(ours)
    assert near(*(m.encode(TEXTS) for m in (plain, ours)))
    assert packed
    assert type(ours.restore()[0]) is MLMTransformer


def test_without_a_head(packed: list[Any]) -> None:
    """A mean of states and an autoencoder on it."""
    from sentence_transformers import SparseEncoder
    from sentence_transformers.sentence_transformer.modules import Pooling
    from sentence_transformers.sparse_encoder.modules import SparseAutoEncoder

    module = loaded("bert_mean_h4")[0]
    width = module.get_embedding_dimension()
    torch.manual_seed(0)
    modules = [module, Pooling(width, "mean"), SparseAutoEncoder(width, 4 * width, k=9)]
    plain = SparseEncoder(modules=modules, device="cpu").eval()
    ours = accelerate(copy.deepcopy(plain))
    assert near(*(m.encode(TEXTS) for m in (plain, ours)))
    assert packed


@pytest.mark.parametrize("name", NAMES)
def test_state(name: str, packed: list[Any]) -> None:
    """Undone, copied, pickled, given other weights."""
    plain, ours = both(name)
    kinds = [type(module) for module in plain.modules()]
    vectors = ours.encode(TEXTS)
    for other in (copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
        packed.clear()
        assert near(other.encode(TEXTS), vectors)
        assert packed
        # The decoder is tied to the words of the copy.
        words = other[0].model.get_input_embeddings().weight
        assert other[0]._pyenc.borrowed.encoder.embeddings.word.weight is words
        assert other[0].model.get_output_embeddings().weight is words
    for model in (plain, ours):
        torch.manual_seed(1)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += torch.randn(parameter.shape) * 0.02
    moved = plain.encode(TEXTS)
    assert not near(moved, vectors)
    assert near(moved, ours.encode(TEXTS))
    assert [type(module) for module in ours.restore().modules()] == kinds
    assert off(plain.encode(TEXTS).to_dense(), restore(ours).encode(TEXTS).to_dense()) == 0


def gradients(model: Any) -> dict[str, torch.Tensor]:
    from sentence_transformers.sparse_encoder.losses import (
        SparseMultipleNegativesRankingLoss,
        SpladeLoss,
    )

    loss = SpladeLoss(
        model, SparseMultipleNegativesRankingLoss(model), document_regularizer_weight=1e-3,
        query_regularizer_weight=1e-3,
    )  # fmt: skip
    model.zero_grad()
    parts = loss([dict(model.preprocess(texts)) for texts in (TEXTS[:5], TEXTS[5:])], None)
    sum(parts.values()).backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def test_gradients(packed: list[Any]) -> None:
    """Of the tied words too, from both ends."""
    plain = without_dropout(splade("bert_mean_h4"))
    ours = accelerate(copy.deepcopy(plain))
    right, found = gradients(plain), gradients(ours)
    assert len(packed) == 2
    assert right.keys() == found.keys()
    assert len(right) > 10
    for name, grad in right.items():
        assert off(grad, found[name]) <= 1e-4 * max(1e-2, float(grad.abs().max())), name


def test_gradients_with_dropout(packed: list[Any]) -> None:
    """Drawn as it was, by the model's own code: to the bit."""
    found = []
    for model in both("bert_mean_h4"):
        torch.manual_seed(3)
        found.append(gradients(model.train()))
    assert not packed
    assert all(torch.equal(grad, found[1][name]) for name, grad in found[0].items())


RAGGED = [*TEXTS, "", "one", "and " * 50]


@pytest.mark.parametrize("tokens", [1, 20, 10_000])
@pytest.mark.parametrize("activation", ["relu", "log1p_relu"])
@pytest.mark.parametrize("name", MASKED)
def test_greatest_logits_alone(
    name: str,
    activation: str,
    tokens: int,
    pooled: list[tuple[int, ...]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In `encode` no padded logits are made, whatever is taken at a time."""
    monkeypatch.setattr(splade_module, "TOKENS", tokens)
    plain, ours = both(name)
    for model in (plain, ours):
        model[1].activation_function = activation
    right = plain.encode(RAGGED)
    assert {shape[1] > 1 for shape in pooled} == {True}
    pooled.clear()
    assert near(right, ours.encode(RAGGED))
    assert {shape[1] for shape in pooled} == {1}
    assert near(right[2], ours.encode(RAGGED[2]))


def test_who_sees_logits_sees_them_padded(pooled: list[tuple[int, ...]]) -> None:
    """Outside of `encode`, under a sum, before a hook, and where a gradient is wanted."""
    _, ours = both("bert_mean_h4")
    features = ours.preprocess(TEXTS)
    size = features["input_ids"].shape
    with torch.no_grad():
        assert ours(dict(features))["token_embeddings"].shape[:2] == size
        assert ours[0](dict(features))["token_embeddings"].shape[:2] == size
    pooled.clear()
    ours[1].pooling_strategy = "sum"
    ours.encode(TEXTS)
    ours[1].pooling_strategy = "max"
    seen: list[torch.Size] = []

    def look(module: Any, given: Any, features: dict[str, Any]) -> None:
        seen.append(features["token_embeddings"].shape[:2])

    handle = ours[0].register_forward_hook(look)
    ours.encode(TEXTS)
    handle.remove()
    assert seen == [size]
    assert [shape[:2] for shape in pooled] == 2 * [size]
    pooled.clear()
    ours.encode(TEXTS)
    assert [shape[1] for shape in pooled] == [1]


def test_two_encoders_in_turns(pooled: list[tuple[int, ...]]) -> None:
    """One called while another encodes is not taken for it, nor is one that encodes called before
    its pass."""
    first, second = both("bert_mean_h4")[1], both("distilbert_h4")[1]
    right, features = first.encode(TEXTS), second.preprocess(TEXTS)
    size = features["input_ids"].shape
    inner: list[Any] = []
    plain = first.preprocess

    def preprocess(*given: Any, **named: Any) -> Any:
        with torch.inference_mode():
            inner.append(second(dict(features))["token_embeddings"].shape[:2])
        with torch.no_grad():
            inner.append(first(dict(features))["token_embeddings"].shape[:2])
        inner.append(first(dict(features))["token_embeddings"].shape[:2])
        second.encode(TEXTS)
        return plain(*given, **named)

    first.preprocess = preprocess
    pooled.clear()
    assert near(right, first.encode(TEXTS))
    assert inner == 3 * [size]
    assert [shape[1] > 1 for shape in pooled] == [True, True, True, False, False]


def test_after_encode(pooled: list[tuple[int, ...]]) -> None:
    """Whether it came to its end or not."""
    model = both("bert_mean_h4")[1]
    features = model.preprocess(TEXTS)

    def stop(*_: Any) -> None:
        raise RuntimeError("in the middle")

    def sizes() -> torch.Size:
        with torch.inference_mode():
            found: torch.Size = model(dict(features))["token_embeddings"].shape[:2]
        return found

    model.encode(TEXTS)
    assert sizes() == features["input_ids"].shape
    for module in (model[0], model[0].model.cls, model[1]):
        handle = module.register_forward_pre_hook(stop)
        with pytest.raises(RuntimeError, match="in the middle"):
            model.encode(TEXTS)
        handle.remove()
        assert sizes() == features["input_ids"].shape
    pooled.clear()
    model.encode(TEXTS)
    assert [shape[1] for shape in pooled] == [1]


@pytest.mark.parametrize("how", ["adds", "leaves out"])
def test_a_head_that_mixes_places(how: str, pooled: list[tuple[int, ...]]) -> None:
    """Such a one is given its rows as they are."""
    plain = splade("bert_mean_h4")
    cls = plain[0].model.cls

    class Shaped(torch.nn.Module):
        """Looks at how many rows there are."""

        def __init__(self) -> None:
            super().__init__()
            self.cls = cls

        def forward(self, states: torch.Tensor) -> torch.Tensor:
            found: torch.Tensor = self.cls(states)
            if how == "adds":
                return found + 0.5 * (len(states) > 1)
            return found if len(states) > 1 else found[:, 1:]

    plain[0].model.cls = Shaped()
    ours = accelerate(copy.deepcopy(plain))
    assert is_accelerated(ours)
    assert near(plain.encode(TEXTS), ours.encode(TEXTS))
    assert all(shape[1] > 1 for shape in pooled)
