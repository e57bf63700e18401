"""DeBERTa-v2 and v3 against transformers' own class: every field of its configuration, both
masked-LM heads, and the weights of every class made of it."""

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
    # Of heads whose number of channels, times the terms of a score, has a root that is whole: the
    # class takes it in float32, also of a model in float64.
    "vocab_size": 61, "hidden_size": 36, "num_hidden_layers": 3, "num_attention_heads": 3,
    "intermediate_size": 40, "max_position_embeddings": 30, "relative_attention": True,
    "position_biased_input": False, "pos_att_type": ["p2c", "c2p"], "share_att_key": True,
    "norm_rel_ebd": "layer_norm", "position_buckets": 8,
}  # fmt: skip
ONE_TERM: dict[str, Any] = {"hidden_size": 24, "num_attention_heads": 3}

HONOURED: dict[str, list[Any]] = {
    "vocab_size": [71],
    "hidden_size": [9, 144],
    "num_hidden_layers": [1, 5],
    "num_attention_heads": [12],
    "intermediate_size": [7],
    "hidden_act": ["gelu", "gelu_new", "relu", "silu"],
    "hidden_dropout_prob": [0.25],
    "attention_probs_dropout_prob": [0.25],
    "max_position_embeddings": [12, 500],
    "type_vocab_size": [1, 4],
    "layer_norm_eps": [1e-2],
    "max_relative_positions": [-1, 0, 7, 40],
    "pos_att_type": ["p2c|c2p", "C2P | p2c"],
    "pad_token_id": [None, 5],
    "tie_word_embeddings": [False],
    "legacy": [False],
    # Read where they are there.
    "position_buckets": [-1, 0, 2, 9, 16],
    "share_att_key": [False],
    "norm_rel_ebd": ["none", "layer_norm|none"],
    "conv_kernel_size": [0, 1, 3, 5],
    "conv_act": ["gelu", "tanh", "relu"],
    "conv_groups": [1, 4],
}
"""Fields that decide what is computed -> values with which the answers are the class's."""

REFUSED = {"relative_attention": False, "position_biased_input": True}
"""Fields that ask for another computation."""

WITHOUT_EFFECT: dict[str, Any] = {
    "initializer_range": 0.5, "pooler_dropout": 0.5, "pooler_hidden_act": "tanh",
    "bos_token_id": 9, "eos_token_id": 9,
}  # fmt: skip
"""Fields that change no hidden state of the class."""

HEADS = {
    "Model": (),
    "ForSequenceClassification": ("classifier.", "pooler."),
    "ForTokenClassification": ("classifier.",),
    "ForQuestionAnswering": ("qa_outputs.",),
    "ForMultipleChoice": ("classifier.", "pooler."),
}
"""Classes without a masked-LM head -> what the names of their own heads begin with."""


def original(task: str = "Model", **changes: Any) -> Any:
    """A random model of transformers in float64, far from where it begins."""
    config = transformers.DebertaV2Config(**(SIZES | changes))
    return far_from_its_start(getattr(transformers, f"DebertaV2{task}")(config).double())


def given_to(model: Any) -> dict[str, Tensor]:
    types = model.config.type_vocab_size
    given = batch(max(types, 1))
    return given if types else {key: given[key] for key in ("input_ids", "attention_mask")}


def check_same(model: Any, folder: Path) -> None:
    same_hidden_states(model, model.base_model, given_to(model), folder)


def test_every_field_is_here() -> None:
    theirs = {field.name for field in dataclasses.fields(transformers.DebertaV2Config)}
    own = theirs - {field.name for field in dataclasses.fields(transformers.PreTrainedConfig)}
    assert own <= HONOURED.keys() | WITHOUT_EFFECT.keys() | REFUSED.keys()
    assert len(own) > 15


@pytest.mark.parametrize(
    ("key", "value"), [(key, value) for key, values in HONOURED.items() for value in values]
)
def test_a_field_is_honoured(key: str, value: Any, tmp_path: Path) -> None:
    more = {"conv_kernel_size": 3} if key.startswith("conv") else {}
    check_same(original(**(more | {key: value})), tmp_path)


@pytest.mark.parametrize("key", WITHOUT_EFFECT)
def test_a_field_without_effect(key: str, tmp_path: Path) -> None:
    check_same(original(**{key: WITHOUT_EFFECT[key]}), tmp_path)


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("buckets", [-1, 8])
@pytest.mark.parametrize("terms", [["c2p"], ["p2c"], "c2p", "p2c"])
def test_one_term(terms: Any, buckets: int, shared: bool, tmp_path: Path) -> None:
    changes = {"pos_att_type": terms, "position_buckets": buckets, "share_att_key": shared}
    check_same(original(**ONE_TERM, **changes), tmp_path)


@pytest.mark.parametrize("key", REFUSED)
def test_a_field_is_refused(key: str, tmp_path: Path) -> None:
    original(**{key: REFUSED[key]}).save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=rf"config.json: {key} is {REFUSED[key]}"):
        load_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"conv_kernel_size": 4}, "Convolution: kernel must be odd, from 1 to 255, got 4"),
        ({"conv_kernel_size": 3, "conv_act": "selu"}, "conv_act 'selu' is unknown"),
        ({"embedding_size": 20}, "embedding_size is 20, but word embeddings of another width"),
        ({"pos_att_type": []}, "pos_att_type names no term"),
        ({"pos_att_type": ["p2p", "c2p"]}, "pos_att_type has 'p2p'"),
    ],
)
def test_what_the_class_reads_beside_its_fields(
    changes: dict[str, Any], why: str, tmp_path: Path
) -> None:
    original(**changes).save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=rf"config.json: {why}"):
        load_checkpoint(tmp_path)


def test_what_a_file_leaves_open(tmp_path: Path) -> None:
    """Is what the class takes."""
    model = original(intermediate_size=6144, max_position_embeddings=512, share_att_key=False,
                     norm_rel_ebd="none", position_buckets=-1)  # fmt: skip
    model.save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    said = json.loads(path.read_text())
    for key in ("intermediate_size", "hidden_act", "max_position_embeddings", "type_vocab_size",
                "layer_norm_eps", "pad_token_id", "hidden_dropout_prob", "share_att_key",
                "attention_probs_dropout_prob", "norm_rel_ebd", "position_buckets",
                "max_relative_positions", "legacy"):  # fmt: skip
        del said[key]
    path.write_text(json.dumps(said))
    model = transformers.DebertaV2Model.from_pretrained(tmp_path, dtype=torch.float64).eval()
    check_same(model, tmp_path / "again")
    config = load_checkpoint(tmp_path).encoder.config
    assert (config.hidden_dropout, config.attention_dropout) == (0.1, 0.1)
    assert config == load_checkpoint(tmp_path / "again").encoder.config


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("task", HEADS)
def test_saved_by_every_class(task: str, shared: bool, tmp_path: Path) -> None:
    """With the prefix and without; heads are set aside and come back as they were."""
    model = original(task, share_att_key=shared, conv_kernel_size=0 if shared else 3)
    check_same(model, tmp_path / "a")
    checkpoint = load_checkpoint(tmp_path / "a")
    aside = {name for name in checkpoint.set_aside if name.startswith(HEADS[task] or "none")}
    assert aside == checkpoint.set_aside.keys()
    assert len(aside) == sum(not name.startswith("deberta.") for name in model.state_dict()) * (
        task != "Model"
    )
    with pytest.raises(InputError, match=r"no masked-LM head: the weights lack cls\.predictions"):
        checkpoint.encoder.token_logits(**given_to(model))
    saved_as_it_came(tmp_path, model)


@torch.no_grad()
@pytest.mark.parametrize("legacy", [True, False])
@pytest.mark.parametrize("activation", ["gelu", "relu"])
def test_masked_lm_heads(activation: str, legacy: bool, tmp_path: Path) -> None:
    """The older one that transformers takes where `legacy` is not false, and the published one."""
    model = original("ForMaskedLM", hidden_act=activation, legacy=legacy)
    check_same(model, tmp_path / "a")
    encoder = load_checkpoint(tmp_path / "a", dtype="float64").encoder
    given = given_to(model)
    kept = given["attention_mask"] == 1
    got, right = encoder.token_logits(**given)[kept], model(**given).logits[kept]
    torch.testing.assert_close(got, right, rtol=0, atol=1e-12)
    saved_as_it_came(tmp_path, model)
    # Of the other one's names there is nothing.
    path = tmp_path / "a" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"legacy": not legacy}))
    lacking = r"lm_predictions\.lm_head" if legacy else r"cls\.predictions"
    with pytest.raises(InputError, match=rf"no masked-LM head: the weights lack {lacking}"):
        load_checkpoint(tmp_path / "a").encoder.token_logits(**given)


@torch.no_grad()
def test_an_untied_decoder(tmp_path: Path) -> None:
    model = original("ForMaskedLM", tie_word_embeddings=False)
    check_same(model, tmp_path / "a")
    encoder = load_checkpoint(tmp_path / "a", dtype="float64").encoder
    assert encoder.lm_head is not None
    assert encoder.lm_head.decoder is not None
    given = given_to(model)
    kept = given["attention_mask"] == 1
    got, right = encoder.token_logits(**given)[kept], model(**given).logits[kept]
    torch.testing.assert_close(got, right, rtol=0, atol=1e-12)


@torch.no_grad()
@pytest.mark.parametrize("shared", [True, False])
def test_in_our_own_format(shared: bool, tmp_path: Path) -> None:
    more = {"conv_kernel_size": 3, "conv_groups": 9} if shared else {}
    original("ForMaskedLM", share_att_key=shared, **more).save_pretrained(tmp_path / "a")
    encoder, given = load_checkpoint(tmp_path / "a").encoder, batch(1)
    save_checkpoint(own_checkpoint(encoder), tmp_path / "b")
    again = load_checkpoint(tmp_path / "b").encoder
    assert again.config == encoder.config
    assert torch.equal(again(**given), encoder(**given))
    assert torch.equal(again.token_logits(**given), encoder.token_logits(**given))


@torch.no_grad()
@pytest.mark.parametrize("shared", [True, False])
def test_in_eight_bits(shared: bool, tmp_path: Path) -> None:
    """Loaded so, saved so and read again: the same numbers, near the exact ones."""
    model = original(share_att_key=shared)
    model.save_pretrained(tmp_path / "a")
    checkpoint = load_checkpoint(tmp_path / "a", quantize="int8", device="cpu")
    given = given_to(model)
    kept = given["attention_mask"] == 1
    got, right = checkpoint.encoder(**given)[kept], model(**given).last_hidden_state[kept]
    assert torch.cosine_similarity(got.double(), right, dim=-1).min() >= 0.99
    assert (got - right).abs().max() > 1e-4, "it is quantised"
    save_checkpoint(checkpoint, tmp_path / "b")
    again = load_checkpoint(tmp_path / "b", device="cpu").encoder
    assert torch.equal(again(**given)[kept], got)


@pytest.mark.parametrize("again", [True, False], ids=["recomputed", "kept"])
@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("terms", [["c2p"], ["p2c"], ["c2p", "p2c"]])
def test_gradients(terms: list[str], shared: bool, again: bool, tmp_path: Path) -> None:
    sizes = ONE_TERM if len(terms) == 1 else {}
    no_dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    model = original(
        pad_token_id=None,
        pos_att_type=terms,
        share_att_key=shared,
        conv_kernel_size=3,
        **no_dropout,
        **sizes,
    )
    model.save_pretrained(tmp_path)
    checkpoint = load_checkpoint(tmp_path, dtype="float64")
    if again:
        checkpoint.encoder.train().gradient_checkpointing_enable()
    given = given_to(model)
    kept = given["attention_mask"] == 1
    model(**given).last_hidden_state[kept].square().sum().backward()
    checkpoint.encoder(**given)[kept].square().sum().backward()
    theirs = dict(model.named_parameters())
    for ours, names in checkpoint.sources.items():
        found = checkpoint.encoder.get_parameter(ours).grad
        assert found is not None
        right = torch.cat([theirs[name].grad for name in names])
        torch.testing.assert_close(found, right, rtol=1e-9, atol=1e-9, msg=ours)


def test_leftovers_of_published_files(tmp_path: Path) -> None:
    """What the class passes over is set aside, and written again."""
    original("ForTokenClassification").save_pretrained(tmp_path / "a")
    path = tmp_path / "a" / "model.safetensors"
    more = {"deberta.embeddings.position_embeddings.weight": torch.ones(30, 36),
            "mask_predictions.dense.weight": torch.ones(36, 36)}  # fmt: skip
    save_file(load_file(path) | more, path, metadata={"format": "pt"})
    checkpoint = load_checkpoint(tmp_path / "a")
    assert more.keys() <= checkpoint.set_aside.keys()
    save_checkpoint(checkpoint, tmp_path / "b")
    assert more.keys() <= load_file(tmp_path / "b" / "model.safetensors").keys()
