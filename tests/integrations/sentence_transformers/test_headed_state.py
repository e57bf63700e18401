"""An accelerated reranker is the same objects and weights: saved, copied, changed, undone."""

from __future__ import annotations

import copy
import pickle
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("sentence_transformers")

from pyenc.integrations.sentence_transformers import AccelerationWarning, accelerate, restore
from tests.integrations.sentence_transformers.headed import (
    PAIRS,
    RERANKERS,
    keep_in_float32,
    reranker,
)
from tests.integrations.sentence_transformers.test_answers import NEAR, is_accelerated, off
from tests.integrations.sentence_transformers.test_state import files


@pytest.fixture
def bert() -> Any:
    return reranker("bert_mean_h4")


def own_scores(model: Any) -> Any:
    """What the model's own code makes of the pairs."""
    return restore(copy.deepcopy(model)).predict(PAIRS)


def served(model: Any, packed: list[Any]) -> bool:
    """Whether pyenc's encoder answers, without a word about it, and as the model's own code."""
    packed.clear()
    with warnings.catch_warnings():
        warnings.simplefilter("error", AccelerationWarning)
        scores = model.predict(PAIRS)
    assert off(scores, own_scores(model)) <= NEAR
    return bool(packed)


def left_alone(model: Any, packed: list[Any], why: str) -> None:
    """Run by its own code, told once why."""
    packed.clear()
    with pytest.warns(AccelerationWarning, match=why) as told:
        found = [model.predict(PAIRS) for _ in range(2)]
    assert len(told) == 1
    assert not packed
    assert off(found[0], own_scores(model)) <= 1e-6
    assert off(*found) == 0


@pytest.mark.parametrize("name", RERANKERS)
def test_restore(name: str) -> None:
    model = reranker(name)
    before = {path: (module, type(module)) for path, module in model.named_modules()}
    held = {path: set(vars(module)) for path, (module, _) in before.items()}
    parameters = dict(model.named_parameters())
    scores, drawn = model.predict(PAIRS), torch.get_rng_state()
    assert accelerate(model) is model
    assert torch.equal(torch.get_rng_state(), drawn)
    assert is_accelerated(model)
    assert type(model[0].model) is before["0.model"][1], "the head is of its own class"
    assert off(model.predict(PAIRS), scores) <= NEAR
    assert model.restore() is model
    after = dict(model.named_modules())
    assert after.keys() == before.keys()
    for path, (module, kind) in before.items():
        assert after[path] is module
        assert type(module) is kind
        assert set(vars(module)) == held[path]
    assert all(parameters[path] is p for path, p in model.named_parameters())
    assert off(model.predict(PAIRS), scores) == 0
    assert restore(model) is model


def test_twice_is_once(bert: Any) -> None:
    accelerate(bert)
    slot, kinds = bert[0]._pyenc, [type(m) for m in bert.modules()]
    assert accelerate(bert) is bert
    assert bert[0]._pyenc is slot
    assert [type(m) for m in bert.modules()] == kinds
    assert is_accelerated(accelerate(bert.restore()))


@pytest.mark.parametrize("name", RERANKERS)
def test_weights_are_held_once(name: str) -> None:
    plain, ours = reranker(name), accelerate(reranker(name))
    encoder = ours[0]._pyenc.borrowed.encoder
    assert {id(p) for p in encoder.parameters()} <= {id(p) for p in ours.parameters()}
    assert ours.state_dict().keys() == plain.state_dict().keys()
    assert [n for n, _ in ours.named_modules()] == [n for n, _ in plain.named_modules()]


@pytest.mark.parametrize("how", ["pickle", "copy"])
@pytest.mark.parametrize("name", ["bert_mean_h4", "modernbert_embed_like_h2:mean"])
def test_copies_are_accelerated(name: str, how: str, packed: list[Any]) -> None:
    ours = accelerate(reranker(name))
    other = pickle.loads(pickle.dumps(ours)) if how == "pickle" else copy.deepcopy(ours)
    assert [type(m) for m in other.modules()] == [type(m) for m in ours.modules()]
    assert served(other, packed)
    assert off(ours.predict(PAIRS), other.predict(PAIRS)) <= 1e-6
    assert {id(p) for p in other[0]._pyenc.borrowed.encoder.parameters()} <= {
        id(p) for p in other.parameters()
    }
    assert not is_accelerated(other.restore())
    assert is_accelerated(ours)


@pytest.mark.slow
def test_spawned_workers(bert: Any) -> None:
    ours = accelerate(bert)
    expected = ours.predict(PAIRS)
    pool = ours.start_multi_process_pool(["cpu"])
    try:
        assert off(ours.predict(PAIRS, pool=pool), expected) <= NEAR
    finally:
        ours.stop_multi_process_pool(pool)


@pytest.mark.parametrize("name", RERANKERS)
def test_saved_as_the_plain_one(name: str, tmp_path: Path) -> None:
    from sentence_transformers import CrossEncoder

    plain = reranker(name)
    ours = accelerate(copy.deepcopy(plain))
    ours.predict(PAIRS)
    ours.save_pretrained(str(tmp_path / "ours"), create_model_card=False)
    ours.restore().save_pretrained(str(tmp_path / "plain"), create_model_card=False)
    assert files(tmp_path / "plain") == files(tmp_path / "ours")
    again = CrossEncoder(str(tmp_path / "ours"), device="cpu", local_files_only=True)
    assert type(again[0].model) is type(plain[0].model)
    assert off(again.predict(PAIRS), plain.predict(PAIRS)) <= 1e-6
    assert is_accelerated(accelerate(again))


def test_a_model_card(bert: Any, tmp_path: Path) -> None:
    """It names the model's own classes."""
    accelerate(bert).save_pretrained(str(tmp_path / "ours"))
    assert "pyenc" not in (tmp_path / "ours" / "README.md").read_text().replace(str(tmp_path), "")


@pytest.mark.parametrize("name", RERANKERS)
def test_weights_that_change_are_seen(name: str, packed: list[Any]) -> None:
    model = accelerate(reranker(name))
    before, state = model.predict(PAIRS), copy.deepcopy(model.state_dict())
    borrowed = model[0]._pyenc.borrowed
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += torch.randn(parameter.shape) * 0.05
    assert off(own_scores(model), before) > 1e-3
    assert served(model, packed)
    assert model[0]._pyenc.borrowed is borrowed
    for assign in (False, True):
        model.load_state_dict(state, assign=assign)
        assert served(model, packed)
        assert off(model.predict(PAIRS), before) <= NEAR


def test_another_classifier(bert: Any, packed: list[Any]) -> None:
    """The head is the model's own: what is done to it is done."""
    model = accelerate(bert)
    before = model.predict(PAIRS)
    head = model[0].model
    head.classifier = torch.nn.Sequential(head.classifier, torch.nn.Tanh())
    assert off(own_scores(model), before) > 1e-3
    assert served(model, packed)


def test_another_pooler(bert: Any, packed: list[Any]) -> None:
    """So is the pooler; but its parameters are the family's."""
    model = accelerate(bert)
    before = model.predict(PAIRS)
    model[0].model.bert.pooler.activation = torch.nn.ReLU()
    assert off(own_scores(model), before) > 1e-3
    assert served(model, packed)


def test_another_way_of_pooling(packed: list[Any]) -> None:
    """Read from the config at every call: what a classifier reads of padding is asked again."""
    model = accelerate(reranker("modernbert_embed_like_h2:mean"))
    mean = model.predict(PAIRS)
    model[0].model.config.classifier_pooling = "cls"
    assert served(model, packed)
    assert off(model.predict(PAIRS), mean) > 1e-3
    features = dict(model.preprocess(PAIRS))
    features["attention_mask"][1, 0] = 0
    packed.clear()
    with torch.no_grad():
        found = model(dict(features))["scores"]
        assert not packed
        assert torch.equal(found, restore(copy.deepcopy(model))(dict(features))["scores"])


def test_another_model(bert: Any, packed: list[Any]) -> None:
    """Whole, or what is beneath its head alone; of another head over what is beneath as well."""
    model = accelerate(bert)
    whole = model[0].model
    for exchanged in ("whole", "beneath", "head"):
        if exchanged == "whole":
            model[0].model = restore(copy.deepcopy(model))[0].model
        elif exchanged == "beneath":
            model[0].model.bert = restore(copy.deepcopy(model))[0].model.bert
        else:
            head = copy.copy(whole)
            head._modules = dict(whole._modules)
            model[0].model = head
        with torch.no_grad():
            model[0].model.classifier.bias += 0.3
        assert served(model, packed), exchanged


def test_numbers_beneath(bert: Any, packed: list[Any]) -> None:
    model = accelerate(bert)
    layer = model[0].model.bert.encoder.layer[0].output
    layer.LayerNorm.eps = 1.0
    left_alone(model, packed, "eps of its encoder.layer.0.output.LayerNorm")
    layer.LayerNorm.eps = model[0].model.config.layer_norm_eps
    assert served(model, packed)


def test_a_class_beneath(bert: Any, packed: list[Any]) -> None:
    """sentence-transformers sets another class for a layer that is to be kept in float32."""
    model = accelerate(bert)
    keep_in_float32(model, "0.model.bert.encoder.layer.0.output.dense")
    left_alone(model, packed, "encoder.layer.0.output.dense is kept in float32")
    keep_in_float32(model)
    assert served(model, packed)


def test_hooks_of_the_head_are_run(bert: Any, packed: list[Any]) -> None:
    """On the classifier, and on what is beneath the head, which it calls."""
    model = accelerate(bert)
    seen: list[str] = []
    head = model[0].model
    handles = [
        head.classifier.register_forward_hook(lambda *_: seen.append("classifier")),
        head.bert.register_forward_pre_hook(lambda *_: seen.append("before")),
        head.bert.register_forward_hook(lambda *_: seen.append("beneath")),
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("error", AccelerationWarning)
        model.predict(PAIRS)
    assert packed
    assert seen == ["before", "beneath", "classifier"]
    for handle in handles:
        handle.remove()

    def doubled(_: Any, __: Any, answer: Any) -> Any:
        answer.pooler_output = answer.pooler_output * 2
        return answer

    before = model.predict(PAIRS)
    handle = head.bert.register_forward_hook(doubled)
    assert served(model, packed)
    assert off(model.predict(PAIRS), before) > 1e-3
    handle.remove()


def test_a_hook_that_hands_on_something_else(bert: Any) -> None:
    """The model's own code answers to that, and it is told."""
    model = accelerate(bert)

    def other(_: Any, args: Any, kwargs: Any) -> Any:
        return (args[0].clone(), *args[1:]), kwargs

    before = model.predict(PAIRS)
    model[0].model.bert.register_forward_pre_hook(other, with_kwargs=True)
    with pytest.warns(AccelerationWarning, match="beneath its head is given other tensors") as told:
        found = [model.predict(PAIRS) for _ in range(2)]
    assert len(told) == 1
    assert off(found[0], before) <= NEAR


def test_hooks_beneath_are_run(bert: Any, packed: list[Any]) -> None:
    model = accelerate(bert)
    seen: list[int] = []
    layer = model[0].model.bert.encoder.layer[0]
    handle = layer.register_forward_hook(lambda *_: seen.append(1))
    left_alone(model, packed, "hooks are set")
    assert len(seen) >= 2
    handle.remove()
    assert served(model, packed)


@pytest.mark.slow
def test_compiled_beneath(bert: Any, packed: list[Any]) -> None:
    """In place, later: it takes no states."""
    model = accelerate(bert)
    model[0].model.bert.compile(backend="eager")
    with pytest.warns(AccelerationWarning, match="hooks are set"):
        found = model.predict(PAIRS)
    assert not packed
    model[0].model.bert._compiled_call_impl = None
    assert off(found, own_scores(model)) <= 1e-5


def test_another_forward_of_the_head(bert: Any, packed: list[Any]) -> None:
    model = accelerate(bert)
    head = model[0].model
    own = head.forward
    head.forward = lambda *given, **kwargs: own(*given, **kwargs)
    with pytest.warns(AccelerationWarning, match="hooks are set"):
        model.predict(PAIRS)
    assert not packed
    del head.forward
    assert served(model, packed)
