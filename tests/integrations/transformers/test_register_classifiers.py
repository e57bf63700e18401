"""Classifiers after `pyenc.register()`: rerankers that need remote code, by AutoModel and
CrossEncoder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import pyenc
from pyenc.errors import InputError
from tests.conftest import read_golden

# By a module of it: a folder of tests has its name.
pytest.importorskip("transformers.modeling_utils")

from transformers import AutoModel, AutoModelForSequenceClassification, pipeline

from tests.integrations.transformers.classifier_folders import (
    POOLED,
    batch,
    classifier,
    drawn,
    reranker,
)
from tests.integrations.transformers.register_support import registered as registered

pytestmark = pytest.mark.usefixtures("registered")
OFF = 2e-5
PAIRS = [("the sky", "is blue today"), ("a", "the quick brown fox"), ("", "x")]


def expected(folder: Path, ids: Tensor, mask: Tensor, types: Tensor | None) -> Tensor:
    """The formula in doubles, of the states that pyenc has of the golden checkpoint."""
    model = pyenc.load(folder, pooling="cls", normalize=False, dtype="float64", skip_eps=0).model
    tensors = load_file(folder / "model.safetensors")
    pooler = next(n for n in tensors if n.endswith("pooler.dense.weight")).removesuffix("weight")
    with torch.no_grad():
        first = model(ids, mask, types)[:, 0]
        pooled = torch.tanh(
            first @ tensors[f"{pooler}weight"].double().T + tensors[f"{pooler}bias"].double()
        )
        return pooled @ tensors["classifier.weight"].double().T + tensors["classifier.bias"]


@torch.no_grad()
@pytest.mark.parametrize("labels", [1, 3])
@pytest.mark.parametrize("name", POOLED)
def test_behind_a_pooler(tmp_path: Path, name: str, labels: int) -> None:
    folder = classifier(tmp_path / "c", name, labels)
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32)
    assert type(model).__name__ == "PyencForSequenceClassification"
    assert (model.config.num_labels, model.training) == (labels, False)
    golden, compared = read_golden(name), 0
    for which in golden.batches:
        if golden.expected(which, "last_hidden_state") is None:
            continue
        ids, mask, types = golden.inputs(which)
        if not bool(mask[:, 0].all()):  # which is refused
            continue
        got = model(input_ids=ids, attention_mask=mask, token_type_ids=types)
        off = (got.logits - expected(folder, ids, mask, types)).abs().max()
        assert off <= OFF, f"{which}: off by {off:.2g}"
        compared += 1
    assert compared >= 3


@torch.no_grad()
@pytest.mark.parametrize("kind", [..., "xlm-roberta"])
def test_of_a_dense_layer_of_its_own(tmp_path: Path, kind: Any) -> None:
    """And positions of a table, in the layers of jina-embeddings-v3."""
    right = reranker(tmp_path / "r", model_type=kind)
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "r")
    assert type(model).__name__ == "PyencForSequenceClassification"
    given = batch()
    assert (model(**given).logits - right(**given).logits).abs().max() <= OFF
    states = AutoModel.from_pretrained(tmp_path / "r")(**given).last_hidden_state
    theirs = right.roberta(**given).last_hidden_state
    assert (states - theirs)[given["attention_mask"] == 1].abs().max() <= OFF
    encoder = pyenc.load(tmp_path / "r", pooling="mean", normalize=False)
    assert encoder.max_length == 64
    encoder.save(tmp_path / "again")
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path / "again")
    assert torch.equal(again(**given).logits, model(**given).logits)


@pytest.mark.parametrize("name", ["jina_geglu_h4", "gte_multilingual_like_h4", "jina-reranker-v2"])
def test_cross_encoder(tmp_path: Path, name: str) -> None:
    """What people load them by; scores are a sigmoid's of the logit."""
    CrossEncoder = pytest.importorskip("sentence_transformers").CrossEncoder
    if name == "jina-reranker-v2":
        reranker(tmp_path / "c")
    else:
        classifier(tmp_path / "c", name)
    if name.startswith("gte"):  # whose published tokenizer is XLM-RoBERTa's, without types
        path = tmp_path / "c" / "tokenizer_config.json"
        said = json.loads(path.read_text()) | {"model_input_names": ["input_ids", "attention_mask"]}
        path.write_text(json.dumps(said))
    model = CrossEncoder(str(tmp_path / "c"), device="cpu")
    assert model.num_labels == 1
    scores = model.predict(PAIRS)
    given = model.tokenizer([list(pair) for pair in PAIRS], padding=True, return_tensors="pt")
    given = {
        k: v for k, v in given.items() if k in ("input_ids", "attention_mask", "token_type_ids")
    }
    with torch.no_grad():
        right = torch.sigmoid(model.model(**given).logits[:, 0])
    np.testing.assert_allclose(scores, right.numpy(), atol=1e-5)
    assert np.ptp(scores) > 1e-5
    ranked = model.rank("the sky", [document for _, document in PAIRS])
    assert len(ranked) == 3
    with pytest.warns(pyenc.AccelerationWarning, match="is pyenc's already"):
        pyenc.accelerate(model)
    model.save_pretrained(str(tmp_path / "saved"))
    again = CrossEncoder(str(tmp_path / "saved"), device="cpu")
    np.testing.assert_array_equal(again.predict(PAIRS), scores)


def test_a_pipeline(tmp_path: Path) -> None:
    folder = classifier(tmp_path, "jina_geglu_h4", 3)
    found = pipeline("text-classification", str(folder), device="cpu", top_k=None)(["the sky"])
    scores = {each["label"]: each["score"] for each in found[0]}
    assert set(scores) == {"L0", "L1", "L2"}
    assert abs(sum(scores.values()) - 1) <= 1e-5


@pytest.mark.parametrize("labels", [1, 3])
def test_loss_and_gradients(tmp_path: Path, labels: int) -> None:
    """As transformers' own, for the same layers."""
    right = reranker(tmp_path / "r")
    folder = tmp_path / "r"
    config = json.loads((folder / "config.json").read_text())
    if labels > 1:
        head = right.classifier
        head.out_proj.weight.data = drawn(labels, 48)
        head.out_proj.bias.data = drawn(labels)
        tensors = load_file(folder / "model.safetensors")
        tensors["classifier.out_proj.weight"] = head.out_proj.weight.detach().clone()
        tensors["classifier.out_proj.bias"] = head.out_proj.bias.detach().clone()
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        config |= {"num_labels": labels, "id2label": {str(i): str(i) for i in range(labels)}}
        right.num_labels = right.config.num_labels = labels
        (folder / "config.json").write_text(json.dumps(config))
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    wanted = torch.tensor([0.0, 1.0, 0.5]) if labels == 1 else torch.tensor([0, 2, 1])
    found, expected = (m(**batch(), labels=wanted) for m in (model, right))
    assert abs(found.loss - expected.loss) <= 1e-5
    for out in (found, expected):
        out.loss.backward()
    for path in ("dense", "out_proj"):
        theirs = getattr(right.classifier, path).weight.grad
        own = model.get_submodule(f"classifier.{path}").weight.grad
        assert (own - theirs).abs().max() <= 1e-5 * theirs.abs().max().clamp(min=1)
    word = right.roberta.embeddings.word_embeddings.weight.grad
    own = model.get_input_embeddings().weight.grad
    assert (own - word).abs().max() <= 1e-4 * word.abs().max()


def test_dropout_in_training(tmp_path: Path) -> None:
    reranker(tmp_path / "r", classifier_dropout=0.5, hidden_dropout_prob=0.0,
             attention_probs_dropout_prob=0.0)  # fmt: skip
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "r")
    assert torch.equal(model(**batch()).logits, model(**batch()).logits)
    model.train()
    first, second = (model(**batch()).logits for _ in range(2))
    assert not torch.equal(first, second)


@pytest.mark.parametrize("name", ["jina_geglu_h4", "mosaic_mlm_h4"])
def test_what_was_trained_is_written(tmp_path: Path, name: str) -> None:
    model = AutoModelForSequenceClassification.from_pretrained(classifier(tmp_path / "c", name, 2))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.01
    model.save_pretrained(tmp_path / "saved")
    stored = load_file(tmp_path / "saved" / "model.safetensors")
    assert torch.equal(stored["classifier.weight"], model.classifier.weight)
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path / "saved")
    ids, mask, types = read_golden(name).inputs("ragged")
    with torch.no_grad():
        one, other = (m(ids, mask, types).logits for m in (model, again))
    assert torch.equal(one, other)
    # The published names, as a trainer reads them back; and the model's own, as it writes them.
    fresh_one = AutoModelForSequenceClassification.from_pretrained(tmp_path / "c")
    fresh_one.load_state_dict(stored, strict=True)
    assert torch.equal(fresh_one.classifier.bias, model.classifier.bias)
    fresh_one.save_pretrained(tmp_path / "state", state_dict=model.state_dict())
    stored_too = load_file(tmp_path / "state" / "model.safetensors")
    assert all(torch.equal(stored[n], stored_too[n]) for n in stored)
    with pytest.raises(InputError, match=r"state_dict: 'classifier.weight' is missing"):
        model.save_pretrained(
            tmp_path / "x", state_dict=model.encoder.state_dict(prefix="encoder.")
        )


@pytest.mark.parametrize(
    "said",
    [
        {"sentence_transformers": {"activation_fn": "torch.nn.modules.linear.Identity"}},
        {"sbert_ce_default_activation_function": "torch.nn.modules.linear.Identity"},
    ],
    ids=lambda said: next(iter(said)),
)
def test_the_activation_of_its_scores(tmp_path: Path, said: dict[str, Any]) -> None:
    """Where config.json says it, as CrossEncoder wrote it for years."""
    CrossEncoder = pytest.importorskip("sentence_transformers").CrossEncoder
    folder = classifier(tmp_path / "c", "jina_geglu_h4", **said)
    for name in ("modules.json", "config_sentence_transformers.json"):
        (folder / name).unlink()
    model = CrossEncoder(str(folder), device="cpu")
    assert type(model.activation_fn).__name__ == "Identity"
    given = model.tokenizer([list(pair) for pair in PAIRS], padding=True, return_tensors="pt")
    with torch.no_grad():
        right = model.model(**given).logits[:, 0]
    np.testing.assert_allclose(model.predict(PAIRS), right.numpy(), atol=1e-5)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod."])
def test_below_a_wrapper(tmp_path: Path, prefix: str) -> None:
    """Found as the encoder's tensors are, and written back under its name."""
    right = AutoModelForSequenceClassification.from_pretrained(
        classifier(tmp_path / "c", "jina_geglu_h4")
    )
    folder = classifier(tmp_path / "w", "jina_geglu_h4")
    tensors = {f"{prefix}{n}": t for n, t in load_file(folder / "model.safetensors").items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    ids, mask, types = read_golden("jina_geglu_h4").inputs("ragged")
    with torch.no_grad():
        assert torch.equal(model(ids, mask, types).logits, right(ids, mask, types).logits)
    model.save_pretrained(tmp_path / "saved")
    assert load_file(tmp_path / "saved" / "model.safetensors").keys() == tensors.keys()
    model.load_state_dict(tensors)
    with pytest.raises(InputError, match=r"'foo.weight' is none of the checkpoint's names"):
        model.load_state_dict(tensors | {"foo.weight": torch.ones(1)})
    del tensors[f"{prefix}classifier.weight"]
    with pytest.raises(InputError, match=r"classifier.weight' is missing"):
        model.load_state_dict(tensors)


def test_adapters_of_tasks_beside_a_table(tmp_path: Path) -> None:
    """Merged and saved by the original's own config.json: transformers' class has no table."""
    said = {
        "lora_adaptations": ["one"], "lora_rank": 4, "lora_alpha": 1, "load_trained_adapters": True,
        "task_instructions": {"one": "so: "}, "model_type": "xlm-roberta",
    }  # fmt: skip
    folder = tmp_path / "r"
    theirs = reranker(folder, **said)
    tensors = load_file(folder / "model.safetensors")
    layer = "roberta.encoder.layers.0.mixer.Wqkv"
    weight = tensors.pop(f"{layer}.weight")
    factors = {"original": weight, "0.lora_A": drawn(1, 4, 48), "0.lora_B": drawn(1, 144, 4)}
    tensors |= {f"{layer}.parametrizations.weight.{n}": t for n, t in factors.items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    encoder = pyenc.load(folder, pooling="mean", normalize=False, task="one", device="cpu")
    right = weight + factors["0.lora_B"][0] @ factors["0.lora_A"][0] / 4
    qkv = encoder.model.state_dict()["layers.0.attention.qkv.weight"]
    assert (qkv - right).abs().max() <= 1e-6
    encoder.save(tmp_path / "saved")
    again = pyenc.load(tmp_path / "saved", device="cpu")
    assert torch.equal(again.model.state_dict()["layers.0.attention.qkv.weight"], qkv)
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "saved")
    attention = theirs.roberta.encoder.layer[0].attention.self
    parts = (attention.query, attention.key, attention.value)
    with torch.no_grad():
        without = theirs(**batch()).logits
        for part, rows in zip(parts, right.chunk(3), strict=True):
            part.weight.copy_(rows)
        found, wanted = (each(**batch()).logits for each in (model, theirs))
    assert (found - wanted).abs().max() <= OFF
    assert (without - wanted).abs().max() > 10 * OFF
