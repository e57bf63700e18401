"""A config.json of pyenc's own type: read as the published one that stands inside of it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import pyenc
from pyenc.errors import CheckpointError, UnknownArchitectureError
from pyenc.loading import load_checkpoint, read_config, save_checkpoint
from pyenc.loading.own_type import published
from pyenc.loading.weights import WeightFiles, tensor_names
from tests.conftest import CHECKPOINTS, GOLDEN, read_golden


def wrapped(folder: Path) -> dict[str, Any]:
    """Put a folder's config.json inside of one of our own."""
    path = folder / "config.json"
    inner = json.loads(path.read_text("utf-8"))
    path.write_text(json.dumps({"model_type": "pyenc", "vocab_size": 3, "published": inner}))
    return inner


@pytest.mark.parametrize("name", ["jina_geglu_h4", "xlmr_e5_like_h2", "mosaic_base_h12"])
def test_loaded_as_the_published_one(name: str, tmp_path: Path) -> None:
    """Tokenizer and all: RoBERTa's is told by model_type."""
    shutil.copytree(GOLDEN / name, tmp_path, dirs_exist_ok=True)
    inner = wrapped(tmp_path)
    texts = read_golden(name).texts
    encoder = pyenc.load(tmp_path)
    assert (encoder.encode(texts) == pyenc.load(GOLDEN / name).encode(texts)).all()
    assert read_config(tmp_path) == inner
    encoder.save(tmp_path / "saved")
    saved = json.loads((tmp_path / "saved" / "config.json").read_text("utf-8"))
    assert saved["model_type"] == inner["model_type"]
    assert "published" not in saved


@pytest.mark.parametrize("inner", [None, 1, [], {"model_type": "pyenc", "published": {}}])
def test_without_a_published_one(inner: object) -> None:
    with pytest.raises(CheckpointError, match=r"a/config\.json: model_type 'pyenc' needs"):
        published({"model_type": "pyenc", "published": inner}, "a/config.json")


def test_the_inner_one_is_the_cross_check(tmp_path: Path) -> None:
    """The tensors are BERT's: of a type that has other arithmetic they are refused as ever."""
    shutil.copytree(GOLDEN / "jina_geglu_h4", tmp_path, dirs_exist_ok=True)
    path = tmp_path / "config.json"
    inner = json.loads(path.read_text("utf-8")) | {"model_type": "deberta"}
    path.write_text(json.dumps({"model_type": "pyenc", "published": inner}))
    with pytest.raises(UnknownArchitectureError, match="deberta"):
        load_checkpoint(tmp_path)


def test_config_in_the_place_of_the_file(tmp_path: Path) -> None:
    shutil.copytree(GOLDEN / "jina_geglu_h4", tmp_path, dirs_exist_ok=True)
    said = read_config(tmp_path) | {"layer_norm_eps": 0.5}
    (tmp_path / "config.json").unlink()
    checkpoint = load_checkpoint(tmp_path, config=said)
    assert checkpoint.encoder.config.norm_eps == 0.5
    assert checkpoint.config == said


def test_saving_another_state(tmp_path: Path) -> None:
    checkpoint = load_checkpoint(GOLDEN / "mosaic_mlm_h4")
    state = {k: torch.randn_like(v) for k, v in checkpoint.encoder.state_dict().items()}
    save_checkpoint(checkpoint, tmp_path, config=checkpoint.config, state=state)
    again = load_checkpoint(tmp_path).encoder.state_dict()
    assert again.keys() == state.keys()
    assert all(torch.equal(again[key], value) for key, value in state.items())


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_names_without_weights(name: str) -> None:
    assert sorted(tensor_names(GOLDEN / name)) == sorted(WeightFiles(GOLDEN / name).names)


@pytest.mark.parametrize("legacy", [True, False])
def test_names_of_a_pickle(legacy: bool, tmp_path: Path) -> None:
    """torch's older format too; and what more than tensors is in it is refused."""
    path = tmp_path / "pytorch_model.bin"
    content: dict[str, Any] = {"a.b": torch.ones(3), "c": torch.zeros(2, 2)}
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    assert tensor_names(tmp_path) == ["a.b", "c"]
    torch.save(content | {"d": print}, path, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(CheckpointError, match="more than tensors"):
        tensor_names(tmp_path)


@pytest.mark.parametrize("first", ["a.bin", "a.safetensors"])
def test_names_of_shards_of_two_kinds(first: str, tmp_path: Path) -> None:
    second = "b.safetensors" if first == "a.bin" else "b.bin"
    for name, file in (("x", first), ("y", second)):
        if file.endswith(".bin"):
            torch.save({name: torch.ones(3)}, tmp_path / file)
        else:
            save_file({name: torch.ones(3)}, tmp_path / file)
    shards = {"weight_map": {"x": first, "y": second}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(shards))
    assert tensor_names(tmp_path) == WeightFiles(tmp_path).names == ["x", "y"]
