"""A CrossEncoder scores as it did, whatever pairs it is given; its encoder is ours."""

from __future__ import annotations

import copy
import threading
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("sentence_transformers")

from pyenc.integrations.sentence_transformers import accelerate
from tests.integrations.sentence_transformers.headed import (
    FIRST,
    MEAN,
    PAIRS,
    RERANKERS,
    keep_in_float32,
    reranker,
)
from tests.integrations.sentence_transformers.models import TEXTS
from tests.integrations.sentence_transformers.test_answers import NEAR, Pair, off

CROSS = ("bert_mean_h4", "modernbert_embed_like_h2:mean")


def both(name: str, labels: int = 1) -> Pair:
    plain = reranker(name, labels)
    return plain, accelerate(copy.deepcopy(plain))


@pytest.mark.parametrize("labels", [1, 3])
@pytest.mark.parametrize("name", RERANKERS)
def test_scores(name: str, labels: int, packed: list[Any]) -> None:
    plain, ours = both(name, labels)
    for batch_size, batches in ((32, 1), (3, 5), (1, len(PAIRS))):
        packed.clear()
        a, b = (m.predict(PAIRS, batch_size=batch_size) for m in (plain, ours))
        assert len(packed) == batches
        assert a.dtype == b.dtype
        assert off(a, b) <= NEAR
        assert a.std(0).max() > 0.01, "scores that are one number show nothing"
    a, b = (m.predict(PAIRS, apply_softmax=True, convert_to_tensor=True) for m in (plain, ours))
    assert off(a, b) <= NEAR
    assert off(plain.predict(PAIRS[3]), ours.predict(PAIRS[3])) <= NEAR  # one pair by itself
    logits = [m.predict(PAIRS, activation_fn=torch.nn.Identity()) for m in (plain, ours)]
    assert off(*logits) <= NEAR * max(1, abs(logits[0]).max())
    assert len(ours.predict([])) == 0


@pytest.mark.parametrize("name", RERANKERS)
def test_the_encoder_is_ours(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The own code of what is beneath the head is not run."""
    plain, ours = both(name)
    scores = plain.predict(PAIRS)

    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("the model's own layers were run")

    monkeypatch.setattr(type(plain[0].model.base_model), "forward", never)
    assert off(ours.predict(PAIRS), scores) <= NEAR
    with pytest.raises(AssertionError, match="own layers"):
        plain.predict(PAIRS)


@pytest.mark.parametrize("name", RERANKERS)
def test_rank(name: str) -> None:
    query, documents = TEXTS[2], [text for text in TEXTS if text.strip()]
    a, b = (m.rank(query, documents, return_documents=True, top_k=5) for m in both(name))
    assert len(b) == 5
    assert off([x["score"] for x in a], [x["score"] for x in b]) <= NEAR
    for x, y in zip(a, b, strict=True):
        # Documents with one score may change places.
        assert x["corpus_id"] == y["corpus_id"] or abs(x["score"] - y["score"]) <= NEAR
        assert y["text"] == documents[y["corpus_id"]]


def test_token_types(packed: list[Any]) -> None:
    """Which of the two texts a token is of."""
    plain, ours = both("bert_mean_h4")
    features = plain.preprocess(PAIRS)
    assert features["token_type_ids"].any()
    with torch.no_grad():
        a, b = (m(dict(features))["scores"] for m in (plain, ours))
        assert off(a, b) <= NEAR
        other = features | {"token_type_ids": torch.zeros_like(features["token_type_ids"])}
        assert off(ours(dict(other))["scores"], b) > 100 * NEAR
        assert off(*(m(dict(other))["scores"] for m in (plain, ours))) <= NEAR
    assert len(packed) == 3


def left_padded(model: Any) -> dict[str, Any]:
    side, model.tokenizer.padding_side = model.tokenizer.padding_side, "left"
    features = model.preprocess(PAIRS)
    model.tokenizer.padding_side = side
    assert not features["attention_mask"][:, 0].all()
    return dict(features)


def holes(model: Any) -> dict[str, Any]:
    features = model.preprocess(PAIRS)
    features["attention_mask"][:, 2] = 0
    features["attention_mask"][3, 10:14] = 0
    return dict(features)


def without_first(model: Any) -> dict[str, Any]:
    features = model.preprocess(PAIRS)
    features["attention_mask"][1, 0] = 0
    return dict(features)


def an_empty_row(model: Any) -> dict[str, Any]:
    features = model.preprocess(PAIRS)
    features["attention_mask"][1] = 0
    return dict(features)


def scores_of(models: Pair, features: dict[str, Any]) -> list[Any]:
    with torch.no_grad():
        return [model(dict(features))["scores"] for model in models]


@pytest.mark.parametrize("made", [left_padded, without_first, an_empty_row])
@pytest.mark.parametrize("name", FIRST)
def test_a_first_state_that_is_padding(name: str, made: Any, packed: list[Any]) -> None:
    """What a classifier reads there only its own code knows: to the bit."""
    models = both(name)
    a, b = scores_of(models, made(models[0]))
    assert not packed
    assert torch.equal(a, b)


@pytest.mark.parametrize("made", [left_padded, without_first])
@pytest.mark.parametrize("name", MEAN)
def test_a_mean_under_any_mask(name: str, made: Any, packed: list[Any]) -> None:
    models = both(name)
    a, b = scores_of(models, made(models[0]))
    assert len(packed) == 1
    assert off(a, b) <= NEAR * max(1, float(a.abs().max()))


@pytest.mark.parametrize("name", [*FIRST, *MEAN])
def test_holes(name: str, packed: list[Any]) -> None:
    models = both(name)
    a, b = scores_of(models, holes(models[0]))
    assert len(packed) == 1
    assert off(a, b) <= NEAR * max(1, float(a.abs().max()))


@pytest.mark.parametrize("name", RERANKERS)
def test_ragged(name: str, packed: list[Any]) -> None:
    """One long pair beside many that are hardly there, and all of one length."""
    plain, ours = both(name)
    for pairs in ([("long " * 80, "and longer " * 80), *[("", "")] * 30], [("a", "b")] * 5):
        assert off(plain.predict(pairs), ours.predict(pairs)) <= NEAR
    assert len(packed) == 2


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", RERANKERS)
def test_half(name: str, dtype: torch.dtype, packed: list[Any]) -> None:
    """At most twice as far from the float32 scores as the plain model in that dtype."""
    models = both(name)
    truth = models[0].predict(PAIRS)
    far = []
    for model in models:
        found = model.to(dtype).predict(PAIRS, convert_to_tensor=True).float()
        far.append(float(np.sqrt(np.square(found.numpy() - truth).mean())))
    assert len(packed) == 1
    assert far[1] <= 2 * far[0] + 1e-3


@pytest.mark.parametrize("name", CROSS)
def test_autocast(name: str, packed: list[Any]) -> None:
    models = both(name)
    truth = models[0].predict(PAIRS)
    with torch.autocast("cpu", torch.bfloat16):
        far = [off(m.predict(PAIRS, convert_to_tensor=True).float(), truth) for m in models]
    assert packed
    assert far[1] <= 2 * far[0] + 1e-3, far


def test_a_classifier_kept_in_float32(packed: list[Any]) -> None:
    """By sentence-transformers' own setting: of another dtype than what is beneath."""
    plain = reranker("bert_mean_h4").half()
    keep_in_float32(plain, "0.model.classifier")
    ours = accelerate(copy.deepcopy(plain))
    a, b = scores_of((plain, ours), dict(plain.preprocess(PAIRS)))
    assert packed
    assert a.dtype == b.dtype == torch.float32
    assert off(a, b) <= 5e-3 * float(a.abs().max())


def test_small_batches_are_left_to_it(monkeypatch: pytest.MonkeyPatch, packed: list[Any]) -> None:
    from pyenc.integrations.borrowed import batches

    plain, ours = both("bert_mean_h4")
    for name in ("SMALL", "SMALL_PACKED"):
        monkeypatch.setattr(batches, name, 10**12)
    for model in (ours, copy.deepcopy(ours)):  # whose encoder is not made yet
        assert off(plain.predict(PAIRS), model.predict(PAIRS)) == 0
    assert not packed


@pytest.mark.parametrize("name", CROSS)
def test_all_hidden_states(name: str, packed: list[Any]) -> None:
    models = both(name)
    for model in models:
        model[0].model.config.output_hidden_states = True
    late = accelerate(copy.deepcopy(models[0]))
    with torch.no_grad():
        a, b = (m(dict(m.preprocess(PAIRS))) for m in models)
    assert not packed
    assert torch.equal(a["scores"], b["scores"])
    assert len(a["all_layer_embeddings"]) == len(b["all_layer_embeddings"]) > 2
    for model in (models[1], late):
        model[0].model.config.output_hidden_states = False
        packed.clear()
        assert off(model.predict(PAIRS), models[0].predict(PAIRS)) <= NEAR
        assert len(packed) == 1


@pytest.mark.parametrize("name", CROSS)
def test_features_of_ones_own(name: str, packed: list[Any]) -> None:
    """Positions by hand go to the model's own code."""
    models = both(name)
    features = dict(models[0].preprocess(PAIRS))
    length = features["input_ids"].shape[1]
    said = {"position_ids": torch.arange(length).flip(0)[None]}
    a, b = scores_of(models, features | said)
    with torch.no_grad():
        other = [model[0](dict(features), **said)["scores"] for model in models]
    assert not packed
    assert torch.equal(a, b)
    assert all(torch.equal(a, each) for each in other)
    assert off(a, scores_of(models, features)[1]) > 1e-3


@pytest.mark.parametrize("before", ["nothing", "a pass", "a pass that fails"])
def test_called_by_hand_the_model_is_its_own(before: str, packed: list[Any]) -> None:
    """Beneath and above the first module nothing is handed to anyone, nor left from a pass of the
    same tensors."""
    plain, ours = both("bert_mean_h4")
    features = plain.preprocess(PAIRS)
    given = {name: features[name] for name in ("input_ids", "attention_mask", "token_type_ids")}

    def stop(*_: Any) -> None:
        raise RuntimeError("in the middle")

    with torch.no_grad():
        if before == "a pass":
            ours(dict(features))
        elif before == "a pass that fails":
            handle = ours[0].model.classifier.register_forward_pre_hook(stop)
            with pytest.raises(RuntimeError, match="in the middle"):
                ours(dict(features))
            handle.remove()
        assert len(packed) == (before != "nothing")
        for part in (lambda m: m[0].model, lambda m: m[0].model.bert):
            a, b = (part(m)(**given) for m in (plain, ours))
            assert torch.equal(a[0], b[0])
            a, b = (part(m)(**given, output_hidden_states=True) for m in (plain, ours))
            assert a.keys() == b.keys()
            assert torch.equal(a[0], b[0])
            assert torch.equal(a.hidden_states[-1], b.hidden_states[-1])
    assert len(packed) == (before != "nothing")


def test_one_within_another(packed: list[Any]) -> None:
    """A head that asks another accelerated model about the same tensors: each has its own states,
    and the outer one its own again after the inner one's pass."""
    teacher = reranker("bert_mean_h4")
    with torch.no_grad():
        for parameter in teacher.parameters():
            parameter += torch.randn(parameter.shape) * 0.05
    accelerate(teacher)
    plain = reranker("bert_mean_h4")
    inner = plain[0].model

    def forward(
        self: Any, input_ids: Any, attention_mask: Any = None, token_type_ids: Any = None, **_: Any
    ) -> Any:
        given = {"input_ids": input_ids, "attention_mask": attention_mask}
        if token_type_ids is not None:
            given["token_type_ids"] = token_type_ids
        beneath = teacher[0].model.bert(**given)[1].mean(1, keepdim=True)
        scores = teacher[0](dict(given))["scores"]
        logits = self.classifier(self.bert(**given)[1]) + beneath + scores
        return SimpleNamespace(logits=logits)

    inner.__class__ = type("Taught", (type(inner),), {"forward": forward})
    ours = accelerate(copy.deepcopy(plain))
    packed.clear()
    a = plain.predict(PAIRS)
    assert len(packed) == 1
    assert off(a, ours.predict(PAIRS)) <= NEAR
    assert len(packed) == 3


@pytest.mark.parametrize("name", CROSS)
def test_threads(name: str) -> None:
    """Several at once, each with pairs of its own."""
    plain, ours = both(name)
    batches = [PAIRS[i:] + PAIRS[:i] for i in range(4)]
    expected = [plain.predict(pairs) for pairs in batches]
    found: list[Any] = [[] for _ in batches]

    def work(i: int) -> None:
        found[i] = [ours.predict(batches[i], batch_size=3) for _ in range(3)]

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(batches))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for right, each in zip(expected, found, strict=True):
        assert len(each) == 3
        assert all(off(right, scores) <= NEAR for scores in each)


@pytest.mark.slow
@pytest.mark.parametrize("name", CROSS)
def test_compiled(name: str, packed: list[Any]) -> None:
    """One graph, of the model's own code, as of the plain model."""
    models = both(name)
    features = dict(models[0].preprocess(PAIRS))
    found = []
    for model in models:
        torch._dynamo.reset()
        with torch.no_grad():
            run = torch.compile(model, fullgraph=True, backend="eager")
            found.append(run(dict(features))["scores"])
    torch._dynamo.reset()
    assert not packed
    assert torch.equal(*found)
