"""ELECTRA against transformers' own class: every field of its configuration, the generator's
masked-LM head, and the weights of every class made of it."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from pyenc.errors import CheckpointError, InputError
from pyenc.loading import load_checkpoint, own_checkpoint, save_checkpoint
from tests.integrations.transformers.bert_likes import (
    batch,
    far_from_its_start,
    same_hidden_states,
    saved_as_it_came,
)

transformers = pytest.importorskip("transformers", minversion="5")
SIZES: dict[str, Any] = {
    "vocab_size": 61, "hidden_size": 24, "embedding_size": 10, "num_hidden_layers": 3,
    "num_attention_heads": 4, "intermediate_size": 40, "max_position_embeddings": 30,
}  # fmt: skip

HONOURED: dict[str, list[Any]] = {
    "vocab_size": [71],
    "embedding_size": [24, 31, 1],
    "hidden_size": [32, 20],
    "num_hidden_layers": [1, 5],
    "num_attention_heads": [1, 6],
    "intermediate_size": [7],
    "hidden_act": ["gelu", "gelu_new", "relu", "silu"],
    "hidden_dropout_prob": [0.25],
    "attention_probs_dropout_prob": [0.25],
    "max_position_embeddings": [20],
    "type_vocab_size": [1, 4],
    "layer_norm_eps": [1e-2],
    "pad_token_id": [None, 5],
    "tie_word_embeddings": [False],
}
"""Fields that decide what is computed -> values with which the answers are the class's."""

REFUSED = {"is_decoder": True, "add_cross_attention": True}
"""Fields that ask for another computation."""

WITHOUT_EFFECT: dict[str, Any] = {
    "initializer_range": 0.5, "classifier_dropout": 0.5, "bos_token_id": 9, "eos_token_id": 9,
    "use_cache": False, "summary_type": "mean", "summary_use_proj": False,
    "summary_activation": "tanh", "summary_last_dropout": 0.5,
}  # fmt: skip
"""Fields that change no hidden state of the class."""

HEADS = {
    "Model": (),
    "ForPreTraining": ("discriminator_predictions.",),
    "ForSequenceClassification": ("classifier.",),
    "ForTokenClassification": ("classifier.",),
    "ForQuestionAnswering": ("qa_outputs.",),
    "ForMultipleChoice": ("classifier.", "sequence_summary."),
}
"""Classes without a masked-LM head -> what the names of their own heads begin with."""


def original(task: str = "Model", **changes: Any) -> Any:
    """A random model of transformers in float64, far from where it begins."""
    config = transformers.ElectraConfig(**(SIZES | changes))
    return far_from_its_start(getattr(transformers, f"Electra{task}")(config).double())


def check_same(model: Any, folder: Path) -> None:
    same_hidden_states(model, model.base_model, batch(model.config.type_vocab_size), folder)


def test_every_field_is_here() -> None:
    theirs = {field.name for field in dataclasses.fields(transformers.ElectraConfig)}
    own = theirs - {field.name for field in dataclasses.fields(transformers.PreTrainedConfig)}
    assert own <= HONOURED.keys() | WITHOUT_EFFECT.keys() | REFUSED.keys()
    assert len(own) > 15


@pytest.mark.parametrize(
    ("key", "value"), [(key, value) for key, values in HONOURED.items() for value in values]
)
def test_a_field_is_honoured(key: str, value: Any, tmp_path: Path) -> None:
    check_same(original(**{key: value}), tmp_path)


@pytest.mark.parametrize("key", WITHOUT_EFFECT)
def test_a_field_without_effect(key: str, tmp_path: Path) -> None:
    check_same(original(**{key: WITHOUT_EFFECT[key]}), tmp_path)


@pytest.mark.parametrize("key", REFUSED)
def test_a_field_is_refused(key: str, tmp_path: Path) -> None:
    changes = {"is_decoder": True} | {key: True}
    original(**changes).save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    said = json.loads(path.read_text()) | {"is_decoder": False} | {key: REFUSED[key]}
    path.write_text(json.dumps(said))
    with pytest.raises(CheckpointError, match=rf"config.json: {key} is True"):
        load_checkpoint(tmp_path)


def test_what_a_file_leaves_open(tmp_path: Path) -> None:
    """Is what the class takes."""
    model = original(embedding_size=128, intermediate_size=1024, max_position_embeddings=512)
    model.save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    said = json.loads(path.read_text())
    for key in ("embedding_size", "intermediate_size", "num_attention_heads", "hidden_act",
                "max_position_embeddings", "type_vocab_size", "layer_norm_eps", "pad_token_id",
                "hidden_dropout_prob", "attention_probs_dropout_prob"):  # fmt: skip
        del said[key]
    path.write_text(json.dumps(said))
    model = transformers.ElectraModel.from_pretrained(tmp_path, dtype=torch.float64).eval()
    check_same(model, tmp_path / "again")
    config = load_checkpoint(tmp_path).encoder.config
    assert (config.hidden_dropout, config.attention_dropout) == (0.1, 0.1)
    assert config == load_checkpoint(tmp_path / "again").encoder.config


@pytest.mark.parametrize("width", [10, 24])
@pytest.mark.parametrize("task", HEADS)
def test_saved_by_every_class(task: str, width: int, tmp_path: Path) -> None:
    """With the prefix and without; heads are set aside and come back as they were."""
    model = original(task, embedding_size=width)
    check_same(model, tmp_path / "a")
    checkpoint = load_checkpoint(tmp_path / "a")
    aside = {name for name in checkpoint.set_aside if name.startswith(HEADS[task] or "none")}
    assert aside == checkpoint.set_aside.keys()
    assert len(aside) == sum(not name.startswith("electra.") for name in model.state_dict()) * (
        task != "Model"
    )
    assert (checkpoint.encoder.embeddings.project is None) == (width == 24)
    with pytest.raises(InputError, match="no masked-LM head: the weights lack generator_predict"):
        checkpoint.encoder.token_logits(**batch())
    saved_as_it_came(tmp_path, model)


@torch.no_grad()
@pytest.mark.parametrize("activation", ["gelu", "relu"])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("width", [10, 24, 31])
def test_the_generators_head(tied: bool, width: int, activation: str, tmp_path: Path) -> None:
    """Its activation is GELU, whatever the layers' is."""
    model = original(
        "ForMaskedLM", tie_word_embeddings=tied, embedding_size=width, hidden_act=activation
    )
    check_same(model, tmp_path / "a")
    encoder = load_checkpoint(tmp_path / "a", dtype="float64", skip_eps=0).encoder
    given = batch()
    kept = given["attention_mask"] == 1
    got, right = encoder.token_logits(**given)[kept], model(**given).logits[kept]
    torch.testing.assert_close(got, right, rtol=0, atol=1e-12)
    assert encoder.lm_head is not None
    assert (encoder.lm_head.decoder is None) == tied
    saved_as_it_came(tmp_path, model)


@torch.no_grad()
def test_in_our_own_format(tmp_path: Path) -> None:
    original("ForMaskedLM").save_pretrained(tmp_path / "a")
    encoder, given = load_checkpoint(tmp_path / "a").encoder, batch()
    save_checkpoint(own_checkpoint(encoder), tmp_path / "b")
    again = load_checkpoint(tmp_path / "b").encoder
    assert again.config == encoder.config
    assert torch.equal(again(**given), encoder(**given))
    assert torch.equal(again.token_logits(**given), encoder.token_logits(**given))


@torch.no_grad()
def test_in_eight_bits(tmp_path: Path) -> None:
    """Loaded so, saved so and read again: the same numbers, near the exact ones."""
    model = original()
    model.save_pretrained(tmp_path / "a")
    checkpoint = load_checkpoint(tmp_path / "a", quantize="int8", device="cpu")
    given = batch()
    kept = given["attention_mask"] == 1
    got, right = checkpoint.encoder(**given)[kept], model(**given).last_hidden_state[kept]
    assert torch.cosine_similarity(got.double(), right, dim=-1).min() >= 0.99
    assert (got - right).abs().max() > 1e-4, "it is quantised"
    save_checkpoint(checkpoint, tmp_path / "b")
    again = load_checkpoint(tmp_path / "b", device="cpu").encoder
    assert torch.equal(again(**given)[kept], got)


@pytest.mark.parametrize("width", [10, 24])
def test_gradients(width: int, tmp_path: Path) -> None:
    model = original(pad_token_id=None, embedding_size=width)
    model.save_pretrained(tmp_path)
    checkpoint = load_checkpoint(tmp_path, dtype="float64", skip_eps=0)
    given = batch()
    kept = given["attention_mask"] == 1
    model(**given).last_hidden_state[kept].square().sum().backward()
    checkpoint.encoder(**given)[kept].square().sum().backward()
    theirs = dict(model.named_parameters())
    for ours, names in checkpoint.sources.items():
        found = checkpoint.encoder.get_parameter(ours).grad
        assert found is not None
        right = torch.cat([theirs[name].grad for name in names])
        torch.testing.assert_close(found, right, rtol=1e-9, atol=1e-9)


@torch.no_grad()
@pytest.mark.parametrize(
    ("bias", "why"), [(None, "the weights lack generator_pr"), (torch.ones(3), "has shape .3,.")]
)
def test_a_decoder_without_its_head(bias: Tensor | None, why: str, tmp_path: Path) -> None:
    """Tied, it follows the word embeddings when they are saved; there are no logits."""
    original("ForMaskedLM").save_pretrained(tmp_path / "a")
    path = tmp_path / "a" / "model.safetensors"
    tensors = load_file(path)
    words, decoder = "electra.embeddings.word_embeddings.weight", "generator_lm_head.weight"
    tensors[decoder] = tensors[words].clone()
    del tensors["generator_predictions.dense.bias"]
    if bias is not None:
        tensors["generator_predictions.dense.bias"] = bias
    save_file(tensors, path, metadata={"format": "pt"})
    checkpoint = load_checkpoint(tmp_path / "a")
    with pytest.raises(InputError, match=why):
        checkpoint.encoder.token_logits(**batch())
    checkpoint.encoder.embeddings.word.weight.mul_(2)
    save_checkpoint(checkpoint, tmp_path / "b")
    after = load_file(tmp_path / "b" / "model.safetensors")
    assert torch.equal(after[decoder], 2 * tensors[words].float())
    assert torch.equal(after[words], after[decoder])
