"""What an accelerated model of transformers is: the same object, saved, copied, changed, undone."""

from __future__ import annotations

import copy
import pickle
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

import pyenc
from pyenc.integrations.borrowed.whole import PackedWhole
from tests.conftest import GOLDEN
from tests.integrations.accelerated.wholes import NEAR, base, batch, both, headed, off, quiet


def made(kind: str) -> Any:
    return base("bert_mean_h4") if kind == "base" else headed("TokenClassification")


def near(plain: Any, ours: Any, given: dict[str, torch.Tensor]) -> bool:
    mask = given["attention_mask"].bool()
    with torch.no_grad():
        a, b = (model(**given)[0][mask] for model in (plain, ours))
    return off(a, b) <= NEAR * max(1, float(a.abs().max()))


KINDS = pytest.mark.parametrize("kind", ["base", "head"])


@KINDS
def test_restored(kind: str, packed: list[Any]) -> None:
    plain = made(kind)
    model, kinds = copy.deepcopy(plain), [type(module) for module in plain.modules()]
    parameters = list(map(id, model.parameters()))
    assert pyenc.accelerate(model) is model
    assert pyenc.accelerate(model) is model
    assert isinstance(model, PackedWhole)
    assert isinstance(model, type(plain))
    assert list(map(id, model.parameters())) == parameters
    given = batch(plain)
    assert near(plain, model, given)
    assert len(packed) == 1
    assert model.restore() is model
    assert [type(module) for module in model.modules()] == kinds
    assert not hasattr(model, "restore")
    with torch.no_grad():
        assert torch.equal(model(**given)[0], plain(**given)[0])
    assert len(packed) == 1


@KINDS
def test_saved(kind: str, tmp_path: Path) -> None:
    plain, ours = both(made(kind))
    for model, name in ((plain, "plain"), (ours, "ours")):
        model.save_pretrained(tmp_path / name)
    for path in (tmp_path / "plain").iterdir():
        assert (tmp_path / "ours" / path.name).read_bytes() == path.read_bytes(), path.name
    again = type(plain).from_pretrained(tmp_path / "ours")
    assert type(again) is type(plain)


@KINDS
def test_copies(kind: str, packed: list[Any]) -> None:
    plain, ours = both(made(kind))
    given = batch(plain)
    for again in (copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
        packed.clear()
        assert near(plain, again, given)
        assert packed
        assert packed[0] is not ours._pyenc.borrowed.encoder


@KINDS
def test_weights_that_change(kind: str, packed: list[Any]) -> None:
    plain, ours = both(made(kind))
    given, state = batch(plain), copy.deepcopy(plain.state_dict())
    torch.manual_seed(1)
    with torch.no_grad():
        for a, b in zip(plain.parameters(), ours.parameters(), strict=True):
            a += (change := torch.randn(a.shape) * 0.05)
            b += change
    assert near(plain, ours, given)
    for model in (plain, ours):
        model.load_state_dict(state, assign=True)
    assert near(plain, ours, given)
    for model in (plain, ours):
        model.double()
    assert near(plain, ours, given)
    for model in (plain, ours):
        model.resize_token_embeddings(400, mean_resizing=False)
    given["input_ids"][0, 0] = 399
    for model in (plain, ours):
        with torch.no_grad():
            model.get_input_embeddings().weight[399] = 0.5
    assert near(plain, ours, given)
    assert len(packed) == 4


@KINDS
def test_hooks(kind: str, packed: list[Any]) -> None:
    """Of the model they are run; of its layers they send it to its own code, with one warning."""
    plain, ours = both(made(kind))
    given, seen = batch(plain), list[str]()
    ours.register_forward_hook(lambda *_: seen.append("model"))
    assert near(plain, ours, given)
    assert seen == ["model"]
    assert packed
    packed.clear()
    layers = ours.encoder.layer if kind == "base" else ours.bert.encoder.layer
    handle = layers[0].register_forward_hook(lambda *_: seen.append("layer"))
    with pytest.warns(pyenc.AccelerationWarning, match="hooks are set on modules"):
        assert near(plain, ours, given)
    assert "layer" in seen
    assert not packed
    handle.remove()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert near(plain, ours, given)
    assert packed


def test_numbers_that_its_config_does_not_say(packed: list[Any]) -> None:
    plain, ours = both(base("bert_mean_h4"))
    for model in (plain, ours):
        model.encoder.layer[0].attention.self.scaling = 0.1
    with pytest.warns(pyenc.AccelerationWarning, match="scaling"):
        assert near(plain, ours, batch(plain))
    assert not packed


@pytest.mark.parametrize("first", ["whole", "beneath"])
def test_one_encoder_is_enough(first: str, packed: list[Any]) -> None:
    """What is beneath a head is accelerated by itself, or with its head; not both."""
    plain = headed("TokenClassification")
    model = copy.deepcopy(plain)
    given = batch(plain)
    if first == "whole":
        pyenc.accelerate(model)
        with pytest.warns(pyenc.AccelerationWarning, match="beneath a head that is accelerated"):
            pyenc.accelerate(model.bert)
        assert near(plain, model, given)
    else:
        pyenc.accelerate(model.bert)
        assert near(plain, model, given)
        packed.clear()
        pyenc.accelerate(model)
        assert near(plain, model, given)
    assert len(packed) == 1
    model.restore()
    assert [type(m) for m in model.modules()] == [type(m) for m in plain.modules()]


def test_one_made_of_its_class(packed: list[Any]) -> None:
    """Is not accelerated, and serves."""
    plain, ours = both(base("bert_mean_h4"))
    made = type(ours)(plain.config).eval()
    made.load_state_dict(plain.state_dict())
    assert near(plain, made, batch(plain))
    assert not packed


def test_what_it_takes_is_told(tmp_path: Path) -> None:
    """By signature, as generation, trainers and tracing ask."""
    import inspect

    for plain in (base("bert_mean_h4"), headed("TokenClassification")):
        ours = pyenc.accelerate(copy.deepcopy(plain))
        assert inspect.signature(ours.forward) == inspect.signature(plain.forward)
        assert inspect.signature(type(ours).forward) == inspect.signature(type(plain).forward)


def test_a_pickle_of_another_library() -> None:
    """Which takes classes that it does not find by their names apart."""
    cloudpickle = pytest.importorskip("cloudpickle")
    plain, ours = both(headed("TokenClassification"))
    again = pickle.loads(cloudpickle.dumps(ours))
    assert type(again) is type(ours)
    assert near(plain, again, batch(plain))


def test_on_meta_and_under_vmap() -> None:
    plain, ours = both(base("distilbert_h4"))
    ids = torch.randint(6, 90, (3, 2, 7))
    with torch.no_grad():
        one, other = (torch.vmap(lambda x, m=m: m(x)[0])(ids) for m in (plain, ours))
        torch.testing.assert_close(one, other)
        ours.to("meta")
        assert ours(ids[0].to("meta"))[0].is_meta


def test_a_trainer(tmp_path: Path, packed: list[Any]) -> None:
    """transformers' own, as it comes: it asks the model what it takes, and hands on how many
    labels there are."""
    pytest.importorskip("accelerate")
    import transformers

    plain = headed("SequenceClassification", num_labels=2)
    plain.config.hidden_dropout_prob = plain.config.attention_probs_dropout_prob = 0.0
    for module in plain.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    torch.manual_seed(2)
    data = [
        {"input_ids": torch.randint(6, 90, (9,)), "labels": i % 2, "comment": str(i)}
        for i in range(8)
    ]
    found = []
    for number, model in enumerate(both(plain)):
        said = transformers.TrainingArguments(
            str(tmp_path / str(number)), max_steps=2, per_device_train_batch_size=4, use_cpu=True,
            report_to=[], save_strategy="no", disable_tqdm=True, seed=3, learning_rate=1e-3,
        )  # fmt: skip
        trainer = transformers.Trainer(model, said, train_dataset=data, eval_dataset=data)
        assert not packed
        with warnings.catch_warnings():
            warnings.simplefilter("error", pyenc.AccelerationWarning)
            trainer.train()
            found.append(trainer.evaluate()["eval_loss"])
    assert len(packed) == 3
    assert abs(found[0] - found[1]) <= 1e-4
    assert isinstance(model, PackedWhole)


def test_stopped_while_it_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    model = base("bert_mean_h4")

    def forward(self: Any, *_: Any, **__: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(type(model), "forward", forward)
    kind = type(model)
    with pytest.raises(KeyboardInterrupt):
        pyenc.accelerate(model)
    assert type(model) is kind


def test_without_sentence_transformers(monkeypatch: pytest.MonkeyPatch, packed: list[Any]) -> None:
    """Which is another library: a model of transformers does without it."""
    for name in [name for name in sys.modules if name.partition(".")[0] == "sentence_transformers"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    plain, ours = both(base("bert_mean_h4"))
    assert near(plain, ours, batch(plain))
    assert packed


@pytest.mark.parametrize("first", ["whole", "sentence-transformers"])
def test_inside_of_a_reranker(first: str, packed: list[Any]) -> None:
    pytest.importorskip("sentence_transformers")
    from pyenc.integrations.sentence_transformers import modules
    from tests.integrations.sentence_transformers.headed import PAIRS, reranker

    model = reranker("bert_mean_h4")
    right, calls, states = model.predict(PAIRS), [], modules.packed_states
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("error")
        patch.setattr(modules, "packed_states", lambda *a: calls.append(1) or states(*a))
        parts = [model[0].model, model]
        for part in parts if first == "whole" else parts[::-1]:
            pyenc.accelerate(part)
        assert abs(model.predict(PAIRS) - right).max() <= NEAR
    assert len(calls) == 1
    assert not packed


@pytest.mark.parametrize("first", ["whole", "sentence-transformers"])
def test_inside_of_sentence_transformers(first: str, packed: list[Any]) -> None:
    """One of the two computes, whichever was accelerated first, and the answer is right."""
    sentence_transformers = pytest.importorskip("sentence_transformers")
    from pyenc.integrations.sentence_transformers import modules

    quiet()
    texts = ["a text", "another, which is longer than the first one", "x"]
    model = sentence_transformers.SentenceTransformer(str(GOLDEN / "bert_mean_h4"), device="cpu")
    right = torch.from_numpy(model.encode(texts))
    kinds = [type(module) for module in model.modules()]
    calls: list[int] = []
    states = modules.packed_states
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(modules, "packed_states", lambda *a: calls.append(1) or states(*a))
        parts = [model[0].model, model]
        for part in parts if first == "whole" else parts[::-1]:
            pyenc.accelerate(part)
        assert off(torch.from_numpy(model.encode(texts)), right) <= NEAR
    assert len(calls) + len(packed) == 1
    model.restore()
    assert [type(module) for module in model.modules()] == kinds
    assert torch.equal(torch.from_numpy(model.encode(texts)), right)
