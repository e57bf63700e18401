"""Rerankers that are language models: by the logits of words after the last token, or by a
classifier that finds that token by its id."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

pytest.importorskip("sentence_transformers")

from pyenc.integrations.sentence_transformers import AccelerationWarning, accelerate
from tests.integrations.sentence_transformers.headed import LANGUAGE, PAIRS, generative, reranker
from tests.integrations.sentence_transformers.test_answers import NEAR, Pair, is_accelerated, off

KINDS = (generative, reranker)
PLAIN = nn.Identity()


def both(kind: Any, name: str = "qwen3_embed_like_h4", **given: Any) -> Pair:
    plain = kind(name, **given)
    return plain, accelerate(copy.deepcopy(plain))


def scores(models: Pair, features: dict[str, Any]) -> list[torch.Tensor]:
    with torch.no_grad():
        return [model(dict(features))["scores"] for model in models]


def features_of(model: Any, side: str) -> dict[str, Any]:
    model.tokenizer.padding_side = side
    # Of nothing some tokenizers make padding alone, whose first place is read.
    features = dict(model.preprocess([pair for pair in PAIRS if side == "right" or any(pair)]))
    edge = features["attention_mask"][:, 0 if side == "left" else -1]
    assert not edge.all(), "no row is padded"
    return features


@pytest.mark.parametrize("no", [6, None])
@pytest.mark.parametrize("name", ["gemma1_like_h2", *LANGUAGE])
def test_words_after_the_last_token(name: str, no: int | None, packed: list[Any]) -> None:
    plain, ours = both(generative, name, no=no)
    for batch_size, batches in ((32, 1), (3, 5), (1, len(PAIRS))):
        packed.clear()
        a, b = (m.predict(PAIRS, batch_size=batch_size, activation_fn=PLAIN) for m in (plain, ours))
        assert len(packed) == batches
        assert a.std() > 0.01
        assert off(a, b) <= NEAR * max(1, abs(a).max())
    ranked = [m.rank("a query", [b for _, b in PAIRS], top_k=4) for m in (plain, ours)]
    assert off(*([x["score"] for x in found] for found in ranked)) <= NEAR


@pytest.mark.parametrize("name", ["gemma1_like_h2", *LANGUAGE])
def test_the_layers_are_ours(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plain, ours = both(generative, name)
    right = plain.predict(PAIRS)

    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("the model's own layers were run")

    monkeypatch.setattr(type(plain[0].model.base_model), "forward", never)
    assert off(ours.predict(PAIRS), right) <= NEAR


def test_padded_on_the_right_the_last_place_is_not_a_token(packed: list[Any]) -> None:
    """What is read there only the model's own code knows: to the bit."""
    models = both(generative)
    features = features_of(models[0], "left")
    for name in ("input_ids", "attention_mask"):
        features[name] = features[name].flip(1)
    a, b = scores(models, features)
    assert not packed
    assert torch.equal(a, b)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("name", LANGUAGE)
def test_the_last_token_by_its_id(name: str, side: str, packed: list[Any]) -> None:
    models = both(reranker, name)
    a, b = scores(models, features_of(models[0], side))
    assert len(packed) == 1
    assert off(a, b) <= NEAR * max(1, float(a.abs().max()))


def a_hole(features: dict[str, Any], padding: int) -> None:
    features["attention_mask"][0, -3:-1] = 0


def other_padding(features: dict[str, Any], padding: int) -> None:
    features["input_ids"][features["attention_mask"] == 0] = padding + 1


def nothing_but_padding(features: dict[str, Any], padding: int) -> None:
    """Before the only token, so that the first place is none."""
    features["input_ids"][1] = padding
    features["attention_mask"][1] = 0
    features["attention_mask"][1, -1] = 1


@pytest.mark.parametrize("made", [a_hole, other_padding, nothing_but_padding])
@pytest.mark.parametrize("side", ["left", "right"])
def test_ids_that_do_not_say_what_is_padding(made: Any, side: str, packed: list[Any]) -> None:
    models = both(reranker)
    features = features_of(models[0], side)
    made(features, models[0].tokenizer.pad_token_id)
    a, b = scores(models, features)
    assert not packed
    assert torch.equal(a, b)


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_within_a_text(side: str, packed: list[Any]) -> None:
    """It is a word like others to the layers, and none to the classifier."""
    models = both(reranker)
    features = features_of(models[0], side)
    row = int(features["attention_mask"].sum(1).argmax())
    last = int(features["attention_mask"][row].nonzero().max())
    features["input_ids"][row, [2, last]] = models[0].tokenizer.pad_token_id
    a, b = scores(models, features)
    assert len(packed) == 1
    assert off(a, b) <= NEAR * max(1, float(a.abs().max()))


def test_another_padding_in_its_config(packed: list[Any]) -> None:
    """Which is read anew at every call."""
    models = both(reranker)
    features = features_of(models[0], "right")
    for model in models:
        model[0].model.config.pad_token_id += 1
    a, b = scores(models, features)
    assert not packed
    assert torch.equal(a, b)


@pytest.mark.parametrize("kept", [0, 1, 3])
def test_logits_to_keep(kept: int, packed: list[Any]) -> None:
    models = both(generative)
    features = features_of(models[0], "left") | {"logits_to_keep": kept}
    with torch.no_grad():
        a, b = (model[0](dict(features))["causal_logits"] for model in models)
    assert a.shape == b.shape
    assert len(packed) == 1
    real = features["attention_mask"].bool()[:, -kept:]
    assert off(a[real], b[real]) <= NEAR * max(1, float(a.abs().max()))
    assert off(*scores(models, features)) <= NEAR * max(1, float(a.abs().max()))


def test_a_chat_template(packed: list[Any]) -> None:
    """Pairs become messages, as Qwen3-Reranker's do."""
    template = (
        "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
        "{% if add_generation_prompt %}assistant:{% endif %}"
    )
    plain = generative("qwen3_embed_like_h4")
    plain.tokenizer.chat_template = template
    from sentence_transformers.base.modules import Transformer

    config, output = Transformer.infer_modalities(plain[0], plain[0].model, plain.tokenizer)
    plain[0].modality_config, plain[0].module_output_name = config, output
    plain[0].input_formatter.supported_modalities = list(config)
    assert "message" in config
    ours = accelerate(copy.deepcopy(plain))
    assert plain.preprocess(PAIRS)["modality"] == "message"
    a, b = (m.predict(PAIRS, activation_fn=PLAIN) for m in (plain, ours))
    assert packed
    assert off(a, b) <= NEAR * max(1, abs(a).max())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half(dtype: torch.dtype, packed: list[Any]) -> None:
    """At most twice as far from the float32 scores as the plain model in that dtype."""
    models = both(generative)
    truth = torch.as_tensor(models[0].predict(PAIRS, activation_fn=PLAIN))
    far = []
    for model in models:
        found = model.to(dtype).predict(PAIRS, activation_fn=PLAIN, convert_to_tensor=True)
        far.append(float((found.float() - truth).square().mean().sqrt()))
    assert len(packed) == 1
    assert far[1] <= 2 * far[0] + 1e-3


@pytest.mark.parametrize("kind", KINDS)
def test_gradients(kind: Any, packed: list[Any]) -> None:
    models = both(kind)
    grads = []
    for model in models:
        model.train()  # these have no dropout
        model(dict(features_of(model, "left")))["scores"].square().sum().backward()
        grads.append({name: p.grad for name, p in model.named_parameters()})
    assert len(packed) == 1
    assert grads[0].keys() == grads[1].keys()
    for name, right in grads[0].items():
        assert (right is None) == (grads[1][name] is None), name
        if right is not None:
            assert off(right, grads[1][name]) <= 1e-4 * max(1, float(right.abs().max())), name


@pytest.mark.parametrize("kind", KINDS)
def test_saved_and_restored(kind: Any, tmp_path: Any, packed: list[Any]) -> None:
    from sentence_transformers import CrossEncoder

    plain, ours = both(kind)
    right = plain.predict(PAIRS)
    ours.save_pretrained(str(tmp_path))
    again = CrossEncoder(str(tmp_path), device="cpu", local_files_only=True)
    again.max_seq_length = 60
    assert type(again[0]) is type(plain[0])
    assert off(accelerate(again).predict(PAIRS), right) <= NEAR
    assert packed
    packed.clear()
    restored = ours.restore()
    assert off(restored.predict(PAIRS), right) == 0
    assert not packed
    assert [type(m) for m in restored.modules()] == [type(m) for m in plain.modules()]


def test_hooks_beneath(packed: list[Any]) -> None:
    """Are told of, and run by the model's own code; those of the head are run in any case."""
    plain, ours = both(generative)
    seen: list[Any] = []
    handle = ours[0].model.lm_head.register_forward_hook(lambda *_: seen.append(1))
    assert off(ours.predict(PAIRS), plain.predict(PAIRS)) <= NEAR
    assert seen
    assert packed
    handle.remove()
    packed.clear()
    ours[0].model.model.layers[0].register_forward_hook(lambda *_: seen.append(2))
    with pytest.warns(AccelerationWarning, match="hooks are set"):
        ours.predict(PAIRS)
    assert 2 in seen
    assert not packed
    assert is_accelerated(ours)
