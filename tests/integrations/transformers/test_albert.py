"""ALBERT against transformers' own class: every field of its configuration, its masked-LM head, and
the weights of every class made of it."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from pyenc.errors import InputError
from pyenc.loading import load_checkpoint, save_checkpoint
from tests.integrations.transformers.bert_likes import batch, far_from_its_start

transformers = pytest.importorskip("transformers", minversion="5")
SIZES: dict[str, Any] = {
    "vocab_size": 61, "hidden_size": 24, "embedding_size": 10, "num_hidden_layers": 5,
    "num_hidden_groups": 2, "inner_group_num": 2, "num_attention_heads": 4,
    "intermediate_size": 40, "max_position_embeddings": 30,
}  # fmt: skip

HONOURED: dict[str, list[Any]] = {
    "vocab_size": [71],
    "embedding_size": [24, 30, 1],
    "hidden_size": [32],
    "num_hidden_layers": [2, 3, 11],
    "num_hidden_groups": [1, 3, 5],
    "num_attention_heads": [1, 6],
    "intermediate_size": [7],
    "inner_group_num": [1, 3],
    "hidden_act": ["gelu", "gelu_new", "relu", "silu"],
    "hidden_dropout_prob": [0.25],
    "attention_probs_dropout_prob": [0.25],
    "max_position_embeddings": [20],
    "type_vocab_size": [1, 4],
    "layer_norm_eps": [1e-2],
    "pad_token_id": [None, 5],
    "tie_word_embeddings": [True],
}
"""Fields that decide what is computed -> values with which the answers are the class's."""

WITHOUT_EFFECT: dict[str, Any] = {
    "initializer_range": 0.5, "classifier_dropout_prob": 0.5, "bos_token_id": 9, "eos_token_id": 9,
}  # fmt: skip
"""Fields that change no hidden state of the class."""


def original(task: str = "Model", **changes: Any) -> Any:
    """A random model of transformers, far from where it begins."""
    config = transformers.AlbertConfig(**(SIZES | changes))
    return far_from_its_start(getattr(transformers, f"Albert{task}")(config))


@torch.no_grad()
def check_same(model: Any, folder: Path) -> None:
    model.save_pretrained(folder)
    encoder = load_checkpoint(folder, skip_eps=0).encoder
    given = batch(model.config.type_vocab_size)
    kept = given["attention_mask"] == 1
    right = getattr(model, "albert", model)(**given)
    got = encoder(**given)
    assert right.last_hidden_state.std() > 0.1
    torch.testing.assert_close(got[kept], right.last_hidden_state[kept], rtol=0, atol=2e-5)
    if right.pooler_output is not None:
        first = kept[:, 0]
        pooled = encoder.pooler_output(got[first, 0])
        torch.testing.assert_close(pooled, right.pooler_output[first], rtol=0, atol=2e-5)


def test_every_field_is_here() -> None:
    theirs = {field.name for field in dataclasses.fields(transformers.AlbertConfig)}
    own = theirs - {field.name for field in dataclasses.fields(transformers.PreTrainedConfig)}
    assert own <= HONOURED.keys() | WITHOUT_EFFECT.keys()
    assert len(own) > 15


@pytest.mark.parametrize(
    ("key", "value"), [(key, value) for key, values in HONOURED.items() for value in values]
)
def test_a_field_is_honoured(key: str, value: Any, tmp_path: Path) -> None:
    check_same(original(**{key: value}), tmp_path)


@pytest.mark.parametrize("key", WITHOUT_EFFECT)
def test_a_field_without_effect(key: str, tmp_path: Path) -> None:
    check_same(original(**{key: WITHOUT_EFFECT[key]}), tmp_path)


def test_what_a_file_leaves_open(tmp_path: Path) -> None:
    """Is what the class takes: gelu_new, one group of one layer, no dropout."""
    model = original(embedding_size=128, num_hidden_groups=1, inner_group_num=1)
    model.save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    said = json.loads(path.read_text())
    for key in ("num_hidden_groups", "inner_group_num", "hidden_act", "embedding_size",
                "type_vocab_size", "layer_norm_eps", "hidden_dropout_prob", "pad_token_id",
                "attention_probs_dropout_prob", "tie_word_embeddings"):  # fmt: skip
        said.pop(key, None)
    path.write_text(json.dumps(said))
    check_same(transformers.AlbertModel.from_pretrained(tmp_path).eval(), tmp_path / "again")
    assert not load_checkpoint(tmp_path).encoder.config.drops


@torch.no_grad()
@pytest.mark.parametrize("task", ["Model", "ForMaskedLM", "ForPreTraining"])
@pytest.mark.parametrize("tied", [True, False])
def test_saved_by_every_class(task: str, tied: bool, tmp_path: Path) -> None:
    """With the prefix and without, each tensor once, the head as it came; its logits."""
    model = original(task, tie_word_embeddings=tied)
    check_same(model, tmp_path / "a")
    checkpoint = load_checkpoint(tmp_path / "a", skip_eps=0)
    encoder, given = checkpoint.encoder, batch()
    if task == "Model":
        with pytest.raises(InputError, match="no masked-LM head: the weights lack predictions"):
            encoder.token_logits(**given)
    else:
        out = model(**given)
        right = out.logits if task == "ForMaskedLM" else out.prediction_logits
        kept = given["attention_mask"] == 1
        got = encoder.token_logits(**given)
        torch.testing.assert_close(got[kept], right[kept], rtol=0, atol=2e-5)
    save_checkpoint(checkpoint, tmp_path / "b")
    before, after = (load_file(tmp_path / x / "model.safetensors") for x in "ab")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    again = getattr(transformers, f"Albert{task}").from_pretrained(tmp_path / "b")
    for name, value in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], value)


def test_gradients(tmp_path: Path) -> None:
    """Of what is stored once, the sum over every time that a text goes through it."""
    model = original(pad_token_id=None).double()
    model.save_pretrained(tmp_path)
    checkpoint = load_checkpoint(tmp_path, dtype="float64", skip_eps=0)
    given = batch()
    kept = given["attention_mask"] == 1
    model(**given).last_hidden_state[kept].square().sum().backward()
    checkpoint.encoder(**given)[kept].square().sum().backward()
    theirs = dict(model.named_parameters())
    for ours, names in checkpoint.sources.items():
        found = checkpoint.encoder.get_parameter(ours).grad
        if ours.startswith("pooler"):
            continue
        assert found is not None
        right = torch.cat([theirs[name].grad for name in names])
        torch.testing.assert_close(found, right, rtol=1e-9, atol=1e-9)
