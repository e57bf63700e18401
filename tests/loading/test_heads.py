"""Tensors beside the encoder: heads and buffers are checked, kept, and written as they came."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from pyenc.errors import CheckpointError
from pyenc.loading import load_checkpoint, save_checkpoint
from tests.conftest import GOLDEN

DECODER = "model.cls.predictions.decoder.weight"
WORDS = "model.bert.embeddings.word_embeddings.weight"


@pytest.fixture
def composer(tmp_path: Path) -> Path:
    """A MosaicBERT with its head as Composer stores it: all below `model.`."""
    folder = tmp_path / "composer"
    shutil.copytree(GOLDEN / "mosaic_mlm_h4", folder)
    tensors = read_pickle(folder)
    (folder / "pytorch_model.bin").unlink()
    write(folder, {f"model.{name}": tensor for name, tensor in tensors.items()})
    return folder


def read_pickle(folder: Path) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = torch.load(folder / "pytorch_model.bin", weights_only=True)
    return tensors


def write(folder: Path, tensors: dict[str, Tensor]) -> None:
    save_file({name: tensor.clone() for name, tensor in tensors.items()}, folder / NAME)


NAME = "model.safetensors"


def test_heads_below_an_outer_prefix(composer: Path, tmp_path: Path) -> None:
    checkpoint = load_checkpoint(composer)
    plain = load_checkpoint(GOLDEN / "mosaic_mlm_h4")
    for name, tensor in plain.encoder.state_dict().items():
        assert torch.equal(checkpoint.encoder.state_dict()[name], tensor), name
    assert checkpoint.tied == {DECODER: "embeddings.word.weight"}
    assert "lm_head.dense.weight" in checkpoint.encoder.state_dict()
    assert not checkpoint.set_aside
    assert not plain.set_aside

    save_checkpoint(checkpoint, tmp_path / "saved")
    before, after = load_file(composer / NAME), load_file(tmp_path / "saved" / NAME)
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], before[name]) for name in before)


def test_a_tied_decoder_below_an_outer_prefix_follows(composer: Path, tmp_path: Path) -> None:
    checkpoint = load_checkpoint(composer)
    with torch.no_grad():
        checkpoint.encoder.embeddings.word.weight += 1
    save_checkpoint(checkpoint, tmp_path / "saved")
    after = load_file(tmp_path / "saved" / NAME)
    assert torch.equal(after[DECODER], after[WORDS])


def test_only_heads_may_stand_outside(composer: Path) -> None:
    tensors = load_file(composer / NAME)
    write(composer, tensors | {"model.adapter.weight": torch.zeros(1)})
    with pytest.raises(CheckpointError, match=r"unexpected tensor 'model\.adapter\.weight'"):
        load_checkpoint(composer)


def test_a_decoder_in_another_dtype_is_no_tie(composer: Path) -> None:
    """Not even where half the bits lose nothing."""
    tensors = load_file(composer / NAME)
    half = tensors[WORDS].half()
    write(composer, tensors | {WORDS: half.float(), DECODER: half})
    checkpoint = load_checkpoint(composer)
    assert not checkpoint.tied
    assert not checkpoint.set_aside
    decoder = checkpoint.encoder.state_dict()["lm_head.decoder.weight"]
    assert torch.equal(decoder, half.float())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float8_e4m3fn])
@pytest.mark.parametrize("name", ["model.cls.predictions.decoder.bias", DECODER])
def test_a_head_that_is_not_finite(composer: Path, name: str, dtype: torch.dtype) -> None:
    tensors = load_file(composer / NAME)
    tensors[name].view(-1)[3] = float("nan")
    tensors[name] = tensors[name].to(dtype)
    write(composer, tensors)
    with pytest.raises(CheckpointError, match=rf"{NAME}: tensor '{name}' has nan at \("):
        load_checkpoint(composer)


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2, torch.int8])
def test_a_quantised_head_is_carried_along(dtype: torch.dtype, tmp_path: Path) -> None:
    """Of a family whose head is no part of the encoder; one that is not finite is refused."""
    shutil.copytree(GOLDEN / "bert_mean_h4", tmp_path / "bert")
    tensors, head = load_file(tmp_path / "bert" / NAME), torch.randn(3, 4).to(dtype)
    write(tmp_path / "bert", tensors | {"cls.head.weight": head})
    save_checkpoint(load_checkpoint(tmp_path / "bert"), tmp_path / "saved")
    after = load_file(tmp_path / "saved" / NAME)["cls.head.weight"]
    assert after.dtype == dtype
    assert torch.equal(after.view(torch.uint8), head.view(torch.uint8))
    if dtype.is_floating_point:
        write(
            tmp_path / "bert", tensors | {"cls.head.weight": torch.tensor([0, torch.nan]).to(dtype)}
        )
        with pytest.raises(
            CheckpointError, match=rf"{NAME}: tensor 'cls.head.weight' has nan at \(1"
        ):
            load_checkpoint(tmp_path / "bert")


def test_a_head_below_a_prefix_that_the_encoder_has_not(tmp_path: Path) -> None:
    shutil.copytree(GOLDEN / "bert_mean_h4", tmp_path / "bert")
    tensors = load_file(tmp_path / "bert" / NAME)
    assert not any(name.startswith("bert.") for name in tensors)
    write(tmp_path / "bert", tensors | {"bert.cls.head.weight": torch.ones(3)})
    with pytest.raises(CheckpointError, match=r"unexpected tensor 'bert\.cls\.head\.weight'"):
        load_checkpoint(tmp_path / "bert")


@pytest.mark.parametrize(
    ("said", "pooling"),
    [
        ({"architectures": ["Qwen3ForCausalLM"]}, "lasttoken"),
        ({"architectures": ["Qwen3ForCausalLM"], "is_causal": True}, "lasttoken"),
        ({"architectures": ["Qwen3ForCausalLM"], "is_causal": False}, "mean"),
        ({"architectures": ["Qwen3Model"]}, "mean"),
        ({"architectures": "Qwen3ForCausalLM"}, "mean"),
        ({"architectures": []}, "mean"),
        ({}, "mean"),
    ],
)
def test_the_pooling_of_a_language_model(said: dict[str, object], pooling: str) -> None:
    """Where no file of the recipe says it, the class of its head does."""
    folder = GOLDEN / "qwen3_embed_like_h4"
    config = json.loads((folder / "config.json").read_text())
    config = {k: v for k, v in config.items() if k not in ("architectures", "is_causal")}
    assert load_checkpoint(folder, config=config | said).pooling == pooling


@pytest.mark.parametrize("prefix", ["", "bert."])
@pytest.mark.parametrize("lost", ["pooler.dense.weight", "pooler.dense.bias", "a.new.head"])
def test_an_index_that_names_what_no_shard_has(lost: str, prefix: str, tmp_path: Path) -> None:
    """A pooler or a head that was not fetched is not one that the checkpoint never had."""
    shutil.copytree(GOLDEN / "bert_mean_h4", tmp_path / "bert")
    tensors = {prefix + name: x.clone() for name, x in load_file(tmp_path / "bert" / NAME).items()}
    (tmp_path / "bert" / NAME).unlink()
    kept = {name: x for name, x in tensors.items() if "pooler" not in name}
    save_file(kept, tmp_path / "bert" / "all.safetensors")
    index = tmp_path / "bert" / f"{NAME}.index.json"
    names = dict.fromkeys(kept, "all.safetensors")
    index.write_text(json.dumps({"weight_map": names}))
    assert load_checkpoint(tmp_path / "bert").encoder.pooler is None
    index.write_text(json.dumps({"weight_map": names | {lost: "all.safetensors"}}))
    with pytest.raises(CheckpointError, match=f"{NAME}.index.json: tensor '{lost}' should be in"):
        load_checkpoint(tmp_path / "bert")


@pytest.mark.parametrize("prefix", ["", "bert.", "model.bert."])
def test_buffers_are_written_back(tmp_path: Path, prefix: str) -> None:
    """Old files carry the positions; they may be of any integer type."""
    folder = tmp_path / "old"
    shutil.copytree(GOLDEN / "bert_mean_h4", folder)
    # Copies: some versions of safetensors write into the file that its tensors are still read from.
    tensors = {prefix + name: x.clone() for name, x in load_file(folder / NAME).items()}
    ids = prefix + "embeddings.position_ids"
    assert ids in tensors
    tensors[prefix + "embeddings.token_type_ids"] = torch.zeros(1, 320, dtype=torch.int32)
    write(folder, tensors)
    save_checkpoint(load_checkpoint(folder), tmp_path / "saved")
    after = load_file(tmp_path / "saved" / NAME)
    assert after.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert after[name].dtype == tensor.dtype
        assert torch.equal(after[name], tensor), name


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ({"torch_dtype": "float16"}, {"torch_dtype": "float32"}),
        ({"dtype": "float16"}, {"dtype": "float32"}),
        ({"dtype": "a", "torch_dtype": "b"}, {"dtype": "float32", "torch_dtype": "float32"}),
        ({}, {"torch_dtype": "float32"}),
    ],
)
def test_the_dtype_in_the_config(
    tmp_path: Path, said: dict[str, str], expected: dict[str, str]
) -> None:
    checkpoint = load_checkpoint(GOLDEN / "bert_mean_h4")
    checkpoint.config.pop("torch_dtype", None)
    checkpoint.config |= said
    save_checkpoint(checkpoint, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert {key: config[key] for key in config if "dtype" in key} == expected
