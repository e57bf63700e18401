"""EuroBERT against transformers' own class: every field of its configuration, saved files of every
task, and the row of padding, which is the token that ends every text."""

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
from pyenc.loading import load_checkpoint, save_checkpoint
from pyenc.loading.save import own_checkpoint
from pyenc.models import EncoderConfig

transformers = pytest.importorskip("transformers", minversion="5")
NAME, WORDS, PADDING = "model.safetensors", 61, 7
SIZES: dict[str, Any] = {
    "vocab_size": WORDS, "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "intermediate_size": 40, "max_position_embeddings": 64,
    "pad_token_id": PADDING, "bos_token_id": 5, "eos_token_id": PADDING, "mask_token_id": 6,
    "rope_parameters": {"rope_theta": 500.0, "rope_type": "default"},
}  # fmt: skip

HONOURED: dict[str, list[Any]] = {
    "vocab_size": [61],
    "hidden_size": [24, 32],
    "intermediate_size": [40, 7],
    "num_hidden_layers": [1, 3],
    "num_attention_heads": [2, 4],
    "num_key_value_heads": [None, 1, 4],
    "hidden_act": ["gelu", "gelu_new", "relu", "silu", "swish"],
    "max_position_embeddings": [64, 99],
    "rms_norm_eps": [1e-2, 1e-6, 0.0],
    "pad_token_id": [None, 0, 60, -1],
    "tie_word_embeddings": [True, False],
    "rope_parameters": [
        {"rope_theta": 20.0, "rope_type": "default"}, {"rope_theta": 1e6, "rope_type": "default"},
        {"rope_theta": 500.0, "rope_type": "linear", "factor": 2.0},
        {"rope_theta": 500.0, "rope_type": "yarn", "factor": 2.0},
        {
            "rope_theta": 500.0, "rope_type": "llama3", "factor": 2.0, "low_freq_factor": 1.0,
            "high_freq_factor": 4.0, "original_max_position_embeddings": 16,
        },
    ],
    "attention_bias": [True],
    "mlp_bias": [True],
    "attention_dropout": [0.0, 0.25],
    "head_dim": [None, 4, 10],
}  # fmt: skip
"""Fields that decide what is computed -> values with which the answers are the class's."""

NOT_SERVED: dict[str, list[Any]] = {
    "hidden_act": ["quick_gelu", "gelu_10"],
    "rope_parameters": [
        {"rope_theta": 500.0, "rope_type": "dynamic", "factor": 2.0},
        {"rope_theta": 500.0, "rope_type": "proportional", "partial_rotary_factor": 1.0},
    ],
}  # fmt: skip

WITHOUT_EFFECT: dict[str, Any] = {
    "initializer_range": 0.5, "use_cache": False, "bos_token_id": 3, "eos_token_id": [3, 4],
    "pretraining_tp": 2, "mask_token_id": 9, "classifier_pooling": "bos",
}  # fmt: skip
"""Fields that change no hidden state and no logit of the class."""


def original(**changes: Any) -> Any:
    """A random masked-LM model of transformers, far from where it begins."""
    model = transformers.EuroBertForMaskedLM(transformers.EuroBertConfig(**(SIZES | changes)))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model.eval()


def batch() -> tuple[Tensor, Tensor]:
    """Texts that all end in the padding's token, by turns padded on the right and on the left, and
    one with holes."""
    ids, mask = torch.full((5, 19), PADDING), torch.zeros(5, 19, dtype=torch.long)
    for row, length in enumerate((19, 1, 8, 13, 17)):
        start = (19 - length) * (row % 2)
        at = slice(start, start + length)
        ids[row, at] = torch.randint(8, WORDS, (length,))
        ids[row, start + length - 1] = PADDING
        mask[row, at] = 1
    mask[4, [2, 3, 9]] = 0
    return ids, mask


def saved(model: Any, folder: Path) -> Path:
    model.save_pretrained(folder)
    return folder


@torch.no_grad()
def check_same(model: Any, folder: Path) -> None:
    encoder = load_checkpoint(folder, skip_eps=0).encoder
    ids, mask = batch()
    kept = mask == 1
    inner = model.model(input_ids=ids, attention_mask=mask).last_hidden_state[kept]
    outer = model(input_ids=ids, attention_mask=mask).logits[kept]
    for right, got in ((inner, encoder(ids, mask)), (outer, encoder.token_logits(ids, mask))):
        assert right.std() > 0.1
        off = (got[kept] - right).abs().max()
        assert off <= 2e-5 * max(1.0, float(right.abs().max())), off


def test_every_field_is_here() -> None:
    theirs = {field.name for field in dataclasses.fields(transformers.EuroBertConfig)}
    own = theirs - {field.name for field in dataclasses.fields(transformers.PreTrainedConfig)}
    assert own <= HONOURED.keys() | WITHOUT_EFFECT.keys()
    assert len(own) > 15


@pytest.mark.parametrize(
    ("key", "value"), [(key, value) for key, values in HONOURED.items() for value in values]
)
def test_a_field_is_honoured(key: str, value: Any, tmp_path: Path) -> None:
    model = original(**{key: value})
    check_same(model, saved(model, tmp_path))


@pytest.mark.parametrize("key", WITHOUT_EFFECT)
def test_a_field_without_effect(key: str, tmp_path: Path) -> None:
    model = original(**{key: WITHOUT_EFFECT[key]})
    check_same(model, saved(model, tmp_path))


@pytest.mark.parametrize(
    ("key", "value"), [(key, value) for key, values in NOT_SERVED.items() for value in values]
)
def test_a_value_is_refused(key: str, value: Any, tmp_path: Path) -> None:
    folder = saved(original(**{key: value}), tmp_path)
    with pytest.raises(CheckpointError, match=f"config.json: {key}"):
        load_checkpoint(folder)


TASKS = ("Model", "ForMaskedLM", "ForSequenceClassification", "ForTokenClassification")


@torch.no_grad()
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("task", TASKS)
def test_saved_by_every_class(task: str, tied: bool, tmp_path: Path) -> None:
    """With the prefix and without, heads kept, written as they came."""
    config = transformers.EuroBertConfig(**SIZES, tie_word_embeddings=tied)
    model = getattr(transformers, f"EuroBert{task}")(config).eval()
    folder = saved(model, tmp_path / "a")
    checkpoint = load_checkpoint(folder, skip_eps=0)
    encoder, (ids, mask) = checkpoint.encoder, batch()
    right = getattr(model, "model", model)(input_ids=ids, attention_mask=mask).last_hidden_state
    torch.testing.assert_close(encoder(ids, mask)[mask == 1], right[mask == 1], rtol=0, atol=1e-5)
    if task == "ForMaskedLM" or (task == "Model" and tied):
        assert encoder.config.lm_head is not None
        assert encoder.config.lm_head.tied == tied
        assert not checkpoint.set_aside
    else:
        message = "lack lm_head.weight" if task == "Model" else "those of a classifier"
        with pytest.raises(InputError, match=message):
            encoder.check_head()
        assert bool(checkpoint.set_aside) == (task != "Model")
    save_checkpoint(checkpoint, tmp_path / "b")
    before, after = (load_file(tmp_path / x / NAME) for x in "ab")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"tie_word_embeddings": "yes"}, "tie_word_embeddings must be true or false"),
        ({"mlp_bias": False}, "describes one without lm_head.bias, which the weights have"),
    ],
    ids=str,
)
def test_a_head_that_the_config_does_not_describe(
    said: dict[str, Any], message: str, tmp_path: Path
) -> None:
    folder = saved(original(mlp_bias=True), tmp_path)
    path = folder / "config.json"
    tensors = load_file(folder / NAME)
    if "mlp_bias" in said:
        layers = {name for name in tensors if ".mlp." in name and name.endswith(".bias")}
        save_file({n: t for n, t in tensors.items() if n not in layers}, folder / NAME)
    path.write_text(json.dumps(json.loads(path.read_text()) | said))
    with pytest.raises(InputError, match=message):
        load_checkpoint(folder).encoder.check_head()


def test_words_that_nothing_ties(tmp_path: Path) -> None:
    """A file that does not say it has no head in its word embeddings; as of the class."""
    assert not transformers.EuroBertConfig().tie_word_embeddings
    folder = saved(original().model, tmp_path)
    path = folder / "config.json"
    said = json.loads(path.read_text())
    said.pop("tie_word_embeddings", None)
    path.write_text(json.dumps(said))
    with pytest.raises(InputError, match=r"the weights lack lm_head.weight"):
        load_checkpoint(folder).encoder.check_head()


def test_a_head_without_its_bias(tmp_path: Path) -> None:
    folder = saved(original(mlp_bias=True), tmp_path)
    tensors = load_file(folder / NAME)
    del tensors["lm_head.bias"]
    save_file(tensors, folder / NAME)
    checkpoint = load_checkpoint(folder)
    with pytest.raises(InputError, match=r"the weights lack lm_head.bias"):
        checkpoint.encoder.check_head()
    assert checkpoint.set_aside.keys() == {"lm_head.weight"}


@torch.no_grad()
@pytest.mark.parametrize("tied", [False, True])
def test_in_a_format_of_ones_own(tied: bool, tmp_path: Path) -> None:
    model = original(tie_word_embeddings=tied, mlp_bias=True)
    encoder = load_checkpoint(saved(model, tmp_path / "a"), skip_eps=0).encoder
    save_checkpoint(own_checkpoint(encoder), tmp_path / "b")
    again = load_checkpoint(tmp_path / "b", skip_eps=0).encoder
    assert again.config == encoder.config
    assert again.config.padding_row == PADDING
    ids, mask = batch()
    assert torch.equal(again.token_logits(ids, mask), encoder.token_logits(ids, mask))


def test_padding_takes_no_gradient(tmp_path: Path) -> None:
    """As of the class: the last token of every text is its padding, whose row stays as it is."""
    model, (ids, mask) = original(), batch()
    encoder = load_checkpoint(saved(model, tmp_path), skip_eps=0).encoder
    share = torch.randn(5, 19, 24) * mask[..., None]
    for run in (model.model(input_ids=ids, attention_mask=mask)[0], encoder(ids, mask)):
        (run * share).sum().backward()
    right, got = model.model.embed_tokens.weight.grad, encoder.embeddings.word.weight.grad
    assert right is not None
    assert got is not None
    assert not right[PADDING].any()
    assert not got[PADDING].any()
    assert right.abs().max() > 1
    torch.testing.assert_close(got, right, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("row", [-1, 61])
def test_a_padding_row_that_is_none(row: int) -> None:
    with pytest.raises(InputError, match=f"padding_row {row} must be one of vocab_size 61 rows"):
        EncoderConfig(
            vocab_size=61, hidden_size=8, num_layers=1, num_heads=1, intermediate_size=8,
            position="alibi", max_length=9, padding_row=row,
        )  # fmt: skip
