"""Checkpoints of transformers' masked-LM classes: the same logits, and back by the same names."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from pyenc.loading import load_checkpoint, save_checkpoint

transformers = pytest.importorskip("transformers", minversion="5")
NAME = "model.safetensors"
WORDS = 97
SIZES = {
    "vocab_size": WORDS, "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2,
    "intermediate_size": 40, "max_position_embeddings": 40, "pad_token_id": 1, "bos_token_id": 0,
    "eos_token_id": 2,
}  # fmt: skip
MODERN = SIZES | {"local_attention": 6, "cls_token_id": 0, "sep_token_id": 2}
EURO = SIZES | {
    "num_attention_heads": 4, "num_key_value_heads": 2, "tie_word_embeddings": False,
    "rope_parameters": {"rope_theta": 250000.0, "rope_type": "default"},
}  # fmt: skip
DISTIL = {
    "vocab_size": WORDS, "dim": 24, "n_layers": 2, "n_heads": 2, "hidden_dim": 40,
    "max_position_embeddings": 40, "pad_token_id": 1,
}  # fmt: skip

MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "bert": ("Bert", SIZES),
    "bert, another activation": ("Bert", SIZES | {"hidden_act": "gelu_new"}),
    "bert, untied": ("Bert", SIZES | {"tie_word_embeddings": False}),
    "modernbert": ("ModernBert", MODERN),
    "modernbert, untied": ("ModernBert", MODERN | {"tie_word_embeddings": False}),
    "modernbert, other biases": (
        "ModernBert",
        MODERN | {"classifier_bias": True, "norm_bias": True, "decoder_bias": False},
    ),
    "modernbert, another activation": ("ModernBert", MODERN | {"classifier_activation": "silu"}),
    "roberta": ("Roberta", SIZES | {"hidden_act": "relu", "layer_norm_eps": 1e-5}),
    "roberta, untied": ("Roberta", SIZES | {"tie_word_embeddings": False}),
    "xlm-roberta": ("XLMRoberta", SIZES),
    "camembert": ("Camembert", SIZES),
    "mpnet": ("MPNet", SIZES),
    "distilbert": ("DistilBert", DISTIL),
    "eurobert": ("EuroBert", EURO),
    "eurobert, tied": ("EuroBert", EURO | {"tie_word_embeddings": True}),
    "eurobert, biases": (
        "EuroBert",
        EURO | {"mlp_bias": True, "attention_bias": True, "head_dim": 8, "hidden_act": "gelu"},
    ),
    "gte": ("Gte", SIZES | {"hidden_act": "silu"}),
    "nomic": ("NomicBert", SIZES),
    "jina v3": ("JinaEmbeddingsV3", SIZES | {"hidden_act": "relu"}),
    "jina v3, untied": ("JinaEmbeddingsV3", SIZES | {"tie_word_embeddings": False}),
}
"""What pyenc serves -> the start of transformers' class names, and a small configuration."""


def original(what: str) -> Any:
    """A random masked-LM model of transformers, biases and norms random too."""
    name, values = MODELS[what]
    if not hasattr(transformers, f"{name}ForMaskedLM"):
        pytest.skip(f"this transformers has no {name}ForMaskedLM")
    model = getattr(transformers, f"{name}ForMaskedLM")(
        getattr(transformers, f"{name}Config")(**values)
    )
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model.eval()


def batch() -> tuple[Tensor, Tensor]:
    ids = torch.randint(3, WORDS, (4, 13))
    mask = (torch.arange(13) < torch.tensor([13, 1, 7, 12])[:, None]).long()
    return ids.masked_fill(mask == 0, 1), mask


@torch.no_grad()
@pytest.mark.parametrize("what", MODELS)
def test_the_same_logits(what: str, tmp_path: Path) -> None:
    model = original(what)
    model.save_pretrained(tmp_path)
    encoder = load_checkpoint(tmp_path, skip_eps=0).encoder
    ids, mask = batch()
    expected = model(input_ids=ids, attention_mask=mask).logits
    got = encoder.token_logits(ids, mask)
    assert expected.std() > 0.1
    torch.testing.assert_close(got[mask == 1], expected[mask == 1], rtol=0, atol=1e-5)
    assert encoder.config.lm_head is not None
    assert encoder.config.lm_head.tied == (
        json.loads((tmp_path / "config.json").read_text()).get("tie_word_embeddings", True)
    )


@pytest.mark.parametrize("what", MODELS)
def test_trained_saved_and_read_by_transformers(what: str, tmp_path: Path) -> None:
    """Two steps of both, from one file, on one batch: the same weights again, under the same
    names; nothing is left aside that training would have moved."""
    model, (ids, mask) = original(what), batch()
    model.save_pretrained(tmp_path / "a")
    checkpoint = load_checkpoint(tmp_path / "a", skip_eps=0)
    encoder, kept = checkpoint.encoder, mask == 1
    labels = torch.randint(0, WORDS, ids.shape)
    for run, parameters in (
        (lambda: model(input_ids=ids, attention_mask=mask).logits, model.parameters()),
        (lambda: encoder.token_logits(ids, mask), encoder.parameters()),
    ):
        optimizer = torch.optim.SGD(parameters, lr=0.1)
        for _ in range(2):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(run()[kept], labels[kept]).backward()
            optimizer.step()
    save_checkpoint(checkpoint, tmp_path / "b")
    model.save_pretrained(tmp_path / "c")
    a, b, c = (load_file(tmp_path / x / NAME) for x in "abc")
    assert a.keys() == b.keys() == c.keys()
    for name, tensor in c.items():
        torch.testing.assert_close(b[name], tensor, rtol=0, atol=1e-5, msg=name)
    moved = [name for name in c if not torch.equal(a[name], c[name])]
    assert len(moved) > len(c) - 4  # the bias of the keys, a dead one
    again = type(model).from_pretrained(tmp_path / "b").eval()
    with torch.no_grad():
        expected = again(input_ids=ids, attention_mask=mask).logits
        got = encoder.eval().token_logits(ids, mask)
    torch.testing.assert_close(got[kept], expected[kept], rtol=0, atol=1e-5)


def test_both_tasks_of_bert(tmp_path: Path) -> None:
    """BertForPreTraining: the words' head is used, the sentences' kept."""
    model = transformers.BertForPreTraining(transformers.BertConfig(**SIZES)).eval()
    model.save_pretrained(tmp_path / "a")
    checkpoint = load_checkpoint(tmp_path / "a")
    assert checkpoint.set_aside.keys() == {
        "cls.seq_relationship.weight", "cls.seq_relationship.bias"
    }  # fmt: skip
    ids, mask = batch()
    with torch.no_grad():
        expected = model(input_ids=ids, attention_mask=mask).prediction_logits[mask == 1]
        got = checkpoint.encoder.token_logits(ids, mask)[mask == 1]
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-5)
    save_checkpoint(checkpoint, tmp_path / "b")
    a, b = (load_file(tmp_path / x / NAME) for x in "ab")
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("decoder_bias", [True, False])
@pytest.mark.parametrize("task", ["SequenceClassification", "TokenClassification"])
def test_a_classifier_of_modernbert_is_no_such_head(
    task: str, decoder_bias: bool, tmp_path: Path
) -> None:
    """It has layers of the same names, which stay aside."""
    config = transformers.ModernBertConfig(**MODERN, decoder_bias=decoder_bias)
    getattr(transformers, f"ModernBertFor{task}")(config).save_pretrained(tmp_path)
    checkpoint = load_checkpoint(tmp_path)
    assert checkpoint.encoder.config.lm_head is None
    assert "of a classifier" in checkpoint.encoder.config.no_lm_head
    assert {"head.dense.weight", "head.norm.weight"} <= checkpoint.set_aside.keys()
