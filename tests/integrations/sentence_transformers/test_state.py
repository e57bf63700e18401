"""An accelerated model is the same objects and weights: saved, copied, trained, undone."""

from __future__ import annotations

import copy
import json
import pickle
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("sentence_transformers")

import pyenc
from pyenc.integrations.sentence_transformers import (
    AccelerationWarning,
    accelerate,
    modules,
    restore,
)
from tests.integrations.sentence_transformers.models import TEXTS, loaded
from tests.integrations.sentence_transformers.test_answers import NEAR, Pair, is_accelerated, off


def test_restore(bert: Any) -> None:
    before = {name: (module, type(module)) for name, module in bert.named_modules()}
    own = {name: dict(vars(module)) for name, (module, _) in before.items()}
    parameters = dict(bert.named_parameters())
    vectors = bert.encode(TEXTS)
    assert accelerate(bert) is bert
    assert off(bert.encode(TEXTS), vectors) <= NEAR
    assert bert.restore() is bert
    after = dict(bert.named_modules())
    assert after.keys() == before.keys()
    for name, (module, kind) in before.items():
        assert after[name] is module
        assert type(module) is kind
        assert vars(module).keys() == own[name].keys()
    assert all(parameters[name] is p for name, p in bert.named_parameters())
    assert off(bert.encode(TEXTS), vectors) == 0
    assert not hasattr(bert, "restore")
    assert restore(bert) is bert


def test_twice_is_once(bert: Any) -> None:
    accelerate(bert)
    slot, kinds = bert[0]._pyenc, [type(m) for m in bert.modules()]
    assert accelerate(bert) is bert
    assert bert[0]._pyenc is slot
    assert [type(m) for m in bert.modules()] == kinds
    bert.restore()
    assert not is_accelerated(bert)
    assert is_accelerated(accelerate(bert))


def test_a_subclass_of_ones_own(bert: Any) -> None:
    from sentence_transformers import SentenceTransformer

    class Mine(SentenceTransformer):
        def shout(self, texts: list[str]) -> Any:
            return self.encode([text.upper() for text in texts])

    mine = Mine(modules=list(bert), device="cpu")
    vectors = mine.shout(TEXTS)
    accelerate(mine)
    assert isinstance(mine, Mine)
    assert type(mine).__name__ == "Mine"
    assert off(mine.shout(TEXTS), vectors) <= NEAR
    assert type(mine.restore()) is Mine


def test_weights_are_held_once(pair: Pair) -> None:
    _, ours = pair
    theirs = {id(p) for p in ours[0].model.parameters()}
    encoder = ours[0]._pyenc.borrowed.encoder
    assert {id(p) for p in encoder.parameters()} <= theirs
    assert not list(encoder.buffers())
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in pair[0].parameters())
    assert ours.state_dict().keys() == pair[0].state_dict().keys()


def test_weights_that_change_are_seen(pair: Pair) -> None:
    plain, ours = (copy.deepcopy(m) for m in pair)
    ours.encode(TEXTS[:1])
    torch.manual_seed(1)
    steps = {name: torch.randn(p.shape) * 0.05 for name, p in plain.named_parameters()}
    with torch.no_grad():  # as an optimizer does it
        for model in (plain, ours):
            for name, parameter in model.named_parameters():
                parameter += steps[name]
    moved = plain.encode(TEXTS)
    assert off(moved, pair[0].encode(TEXTS)) > 1e-3
    assert off(moved, ours.encode(TEXTS)) <= NEAR
    for assign in (False, True):  # as load_state_dict does it, into the tensors or instead of them
        ours.load_state_dict(pair[0].state_dict(), assign=assign)
        assert off(pair[0].encode(TEXTS), ours.encode(TEXTS)) <= NEAR
        assert is_accelerated(ours)


def gradients(model: Any) -> dict[str, torch.Tensor]:
    from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss

    loss = MultipleNegativesRankingLoss(model)
    features = [model.preprocess(texts) for texts in (TEXTS[:5], TEXTS[5:])]
    model.zero_grad()
    loss(features, None).backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def test_gradients_reach_its_parameters(pair: Pair) -> None:
    plain, ours = (copy.deepcopy(m).eval() for m in pair)
    a, b = gradients(plain), gradients(ours)
    assert a.keys() == b.keys()
    assert len(a) > 10
    for name, grad in a.items():
        largest = float(grad.abs().max())
        assert off(grad, b[name]) <= 1e-4 * max(1e-2, largest), name
    assert ours[0]._pyenc.borrowed is not None


def test_a_seeded_training_step_draws_what_it_drew() -> None:
    """With dropout the model's own code is run: to the bit."""
    plain = loaded("bert_mean_h4")
    ours = accelerate(copy.deepcopy(plain))
    found = []
    for model in (plain, ours):
        model.train()
        torch.manual_seed(5)
        found.append(gradients(model))
    assert all(off(grad, found[1][name]) == 0 for name, grad in found[0].items())
    torch.manual_seed(6)
    assert any(off(grad, found[1][name]) > 0 for name, grad in gradients(ours).items())


@pytest.mark.parametrize("name", ["modernbert_embed_like_h2", "NomicBertModel"])
def test_training_without_dropout_is_packed(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = loaded(name)
    ours = accelerate(copy.deepcopy(plain))
    calls = []
    states = modules.packed_states
    monkeypatch.setattr(
        modules, "packed_states", lambda *given: calls.append(1) or states(*given)
    )  # fmt: skip
    a, b = (gradients(m.train()) for m in (plain, ours))
    assert calls
    assert all(off(g, b[n]) <= 1e-4 * max(1e-2, float(g.abs().max())) for n, g in a.items())


@pytest.mark.parametrize("how", ["pickle", "copy"])
def test_copies_are_accelerated(pair: Pair, how: str) -> None:
    _, ours = pair
    other = pickle.loads(pickle.dumps(ours)) if how == "pickle" else copy.deepcopy(ours)
    assert is_accelerated(other)
    assert type(other) is type(ours)
    assert off(ours.encode(TEXTS), other.encode(TEXTS)) == 0
    assert other[0]._pyenc.borrowed is not ours[0]._pyenc.borrowed
    assert {id(p) for p in other[0]._pyenc.borrowed.encoder.parameters()} <= {
        id(p) for p in other.parameters()
    }
    assert not is_accelerated(other.restore())
    assert is_accelerated(ours)


def files(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_saved_as_the_plain_one(pair: Pair, tmp_path: Path) -> None:
    from sentence_transformers import SentenceTransformer

    plain, ours = pair[0], copy.deepcopy(pair[1])
    ours.encode(TEXTS)
    ours.save_pretrained(str(tmp_path / "ours"), create_model_card=False)
    # The same object: a tokenizer writes down how it was called last, and a copy rounds its scores.
    ours.restore().save_pretrained(str(tmp_path / "plain"), create_model_card=False)
    assert files(tmp_path / "plain") == files(tmp_path / "ours")
    kinds = json.loads((tmp_path / "ours" / "modules.json").read_text())
    assert all("pyenc" not in kind["type"] for kind in kinds)
    again = SentenceTransformer(str(tmp_path / "ours"), device="cpu", local_files_only=True)
    assert off(again.encode(TEXTS), plain.encode(TEXTS)) == 0
    vectors = pyenc.load(tmp_path / "ours").encode(TEXTS[:1], normalize=True)
    assert off(vectors, plain.encode(TEXTS[:1], normalize_embeddings=True)) <= NEAR


def test_evaluator(pair: Pair) -> None:
    from sentence_transformers.sentence_transformer.evaluation import EmbeddingSimilarityEvaluator

    texts = [f"{text} {i}" for i, text in enumerate(TEXTS)]
    scores = torch.linspace(0, 1, len(texts)).tolist()
    evaluate = EmbeddingSimilarityEvaluator(texts, texts[::-1], scores, show_progress_bar=False)
    a, b = (evaluate(model) for model in pair)
    assert a.keys() == b.keys()
    assert all(abs(a[key] - b[key]) <= 0.02 for key in a), (a, b)


def test_hooks_are_run(bert: Any) -> None:
    ours = accelerate(bert)
    vectors = ours.encode(TEXTS)
    seen = []
    handle = ours[0].model.encoder.layer[0].register_forward_hook(lambda *given: seen.append(1))
    with pytest.warns(AccelerationWarning, match="hooks") as told:
        again = [ours.encode(TEXTS) for _ in range(2)]
    assert off(again[0], vectors) <= NEAR
    assert len(told) == 1
    assert len(seen) >= 2
    handle.remove()
    ours.encode(TEXTS)
    assert len(seen) == 2


def test_an_exchanged_layer_counts(bert: Any) -> None:
    """One of another function: its own code is run, with one warning."""
    plain, ours = bert, accelerate(copy.deepcopy(bert))
    for model in (plain, ours):
        layer = model[0].model.encoder.layer[0]
        torch.manual_seed(0)
        layer.output.dense = torch.nn.Sequential(layer.output.dense, torch.nn.Tanh())
    with pytest.warns(AccelerationWarning) as told:
        again = [ours.encode(TEXTS) for _ in range(2)]
    assert off(plain.encode(TEXTS), again[0]) == 0
    assert len(told) == 1
    for model in (plain, ours):
        model[0].model.encoder.layer[0].output.dense = layer.output.dense[0]
    assert off(plain.encode(TEXTS), ours.encode(TEXTS)) <= NEAR


@pytest.mark.parametrize("more", ["hidden_states", "attentions"])
def test_more_than_states(bert: Any, more: str, packed: list[Any]) -> None:
    """All layers' states, or attentions: by the model's own code for as long as they are asked for.
    What transformers then leaves on its layers is idle, and no one's hook."""
    bert[0].model.set_attn_implementation("eager")  # which alone has weights to show
    ours = accelerate(copy.deepcopy(bert))
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("error", AccelerationWarning)
        for model in (bert, ours):
            setattr(model[0].model.config, f"output_{more}", True)
        a, b = (m(m.preprocess(TEXTS)) for m in (bert, ours))
        assert off(a["sentence_embedding"], b["sentence_embedding"]) == 0
        if more == "hidden_states":
            layers = a["all_layer_embeddings"], b["all_layer_embeddings"]
            assert len(layers[0]) > 2
            assert all(off(x, y) == 0 for x, y in zip(*layers, strict=True))
        assert not packed
        for model in (bert, ours):
            setattr(model[0].model.config, f"output_{more}", False)
            assert any(module._forward_hooks for module in model[0].model.encoder.modules())
        for model in (ours, accelerate(bert)):
            packed.clear()
            assert off(model.encode(TEXTS), restore(copy.deepcopy(model)).encode(TEXTS)) <= NEAR
            assert packed


def test_autocast(pair: Pair) -> None:
    """At most twice as far from the float32 vectors as the plain model under it."""
    truth = pair[0].encode(TEXTS)
    with torch.autocast("cpu", torch.bfloat16):
        far = [off(m.encode(TEXTS, convert_to_tensor=True).float(), truth) for m in pair]
    assert far[1] <= 2 * far[0] + 1e-5, far


def test_looked_at_under_autocast(bert: Any) -> None:
    """Both are held together as they are, not as autocast rounds them."""
    with torch.autocast("cpu", torch.bfloat16):
        assert is_accelerated(accelerate(bert))
        vectors = copy.deepcopy(bert).encode(TEXTS)  # which looks again
    assert vectors.shape[0] == len(TEXTS)


@pytest.mark.slow
def test_spawned_workers(bert: Any) -> None:
    """A worker's model is accelerated too: its own class is nowhere to be seen there."""
    ours = accelerate(bert)
    expected = ours.encode(TEXTS)
    pool = ours.start_multi_process_pool(["cpu"])
    try:
        assert off(ours.encode(TEXTS, pool=pool), expected) <= NEAR
    finally:
        ours.stop_multi_process_pool(pool)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_trainer(pair: Pair, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    pytest.importorskip("accelerate")
    from sentence_transformers import (
        SentenceTransformerTrainer,
        SentenceTransformerTrainingArguments,
    )
    from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss

    data = datasets.Dataset.from_dict({"anchor": TEXTS[:4], "positive": TEXTS[4:8]})
    found = []
    for i, model in enumerate(copy.deepcopy(m) for m in pair):
        arguments = SentenceTransformerTrainingArguments(
            output_dir=str(tmp_path / str(i)), max_steps=2, per_device_train_batch_size=2, seed=1,
            use_cpu=True, report_to="none", save_strategy="steps", save_steps=2, learning_rate=1e-3,
        )  # fmt: skip
        SentenceTransformerTrainer(
            model=model, args=arguments, train_dataset=data,
            loss=MultipleNegativesRankingLoss(model),
        ).train()  # fmt: skip
        found.append(model.encode(TEXTS))
    assert off(found[0], pair[0].encode(TEXTS)) > 1e-4
    # Adam divides by the gradients' size: what is nothing but rounding becomes a step.
    assert off(*found) <= 0.05
