"""Quantised encoders in files: bit for bit, refused where damaged or by what knows them not."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import pyenc
from pyenc.errors import CheckpointError, InputError
from pyenc.loading import load_checkpoint, own_checkpoint, save_checkpoint
from pyenc.loading.target import check_eight_bits
from pyenc.models.int8 import Int8Linear, quantization
from tests.conftest import GOLDEN, Golden

SMALL = GOLDEN / "bert_mean_h4"


def test_round_trip(golden: Golden, tmp_path: Path) -> None:
    checkpoint = load_checkpoint(golden.folder, quantize="int8", device="cpu")
    save_checkpoint(checkpoint, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text("utf-8"))
    assert config["quantization_config"]["quant_method"] == "pyenc"
    for quantize in (None, "int8"):
        again = load_checkpoint(tmp_path, quantize=quantize, device="cpu")
        assert "quantization_config" not in again.config
        before, after = checkpoint.encoder.state_dict(), again.encoder.state_dict()
        assert after.keys() == before.keys()
        for name, tensor in before.items():
            assert after[name].dtype == tensor.dtype, name
            assert torch.equal(after[name], tensor), name
    save_checkpoint(again, tmp_path)  # over itself
    first = load_file(tmp_path / "model.safetensors")
    count = checkpoint.encoder.config.num_layers
    assert sum(tensor.dtype == torch.int8 for tensor in first.values()) >= 2 * count


def test_in_pyencs_own_format_too(tmp_path: Path) -> None:
    encoder = load_checkpoint(SMALL, quantize="int8", device="cpu").encoder
    save_checkpoint(own_checkpoint(encoder), tmp_path)
    again = load_checkpoint(tmp_path).encoder
    assert quantization(again) == "int8"
    before, after = encoder.state_dict(), again.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


def test_vectors_are_equal_bit_for_bit(tmp_path: Path) -> None:
    encoder = pyenc.load(SMALL, quantize="int8", device="cpu")
    encoder.save(tmp_path / "saved")
    again = pyenc.load(tmp_path / "saved", device="cpu")
    texts = ["the sea", "kept its own time", "", "a b c " * 40]
    assert np.array_equal(again.encode(texts), encoder.encode(texts))
    small = (tmp_path / "saved" / "model.safetensors").stat().st_size
    assert small < (SMALL / "model.safetensors").stat().st_size


def test_in_bfloat16_too(tmp_path: Path) -> None:
    checkpoint = load_checkpoint(SMALL, quantize="int8", dtype="bfloat16", device="cpu")
    save_checkpoint(checkpoint, tmp_path)
    again = load_checkpoint(tmp_path, dtype="auto", device="cpu").encoder
    assert again.dtype == torch.bfloat16
    ids = torch.randint(5, 60, (2, 9))
    assert torch.equal(again(ids), checkpoint.encoder(ids))
    scales = [module.scale for module in again.modules() if isinstance(module, Int8Linear)]
    assert all(scale.dtype == torch.float32 for scale in scales)


def drop_scale(tensors: dict[str, Tensor], name: str) -> None:
    del tensors[name + "_scale"]


def too_large(tensors: dict[str, Tensor], name: str) -> None:
    tensors[name][0, 1, 2] = 127


def no_integers(tensors: dict[str, Tensor], name: str) -> None:
    tensors[name] = tensors[name].float()


def plain(tensors: dict[str, Tensor], name: str) -> None:
    tensors[name] = torch.randn(tensors[name].shape[1:])
    del tensors[name + "_scale"]


def short_scale(tensors: dict[str, Tensor], name: str) -> None:
    tensors[name + "_scale"] = tensors[name + "_scale"][1:].clone()


def nan_scale(tensors: dict[str, Tensor], name: str) -> None:
    tensors[name + "_scale"][3] = torch.nan


def negative_scale(tensors: dict[str, Tensor], name: str) -> None:
    tensors[name + "_scale"][3] *= -1


def half_scale(tensors: dict[str, Tensor], name: str) -> None:
    tensors[name + "_scale"] = tensors[name + "_scale"].half()


def misshapen(tensors: dict[str, Tensor], name: str) -> None:
    tensors[name] = tensors[name][:, :, 1:].contiguous()


def an_embedding(tensors: dict[str, Tensor], name: str) -> None:
    words = next(n for n in tensors if n.endswith("word_embeddings.weight"))
    rows = len(tensors[words])
    tensors[words] = tensors[words][None].clamp(-1, 1).to(torch.int8)
    tensors[words + "_scale"] = torch.ones(rows)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (drop_scale, "has no .*weight_scale"),
        (too_large, "expected int8"),
        (no_integers, "expected int8"),
        (plain, "is not of eight bits"),
        (short_scale, "expected int8"),
        (nan_scale, "expected int8"),
        (negative_scale, "expected int8"),
        (half_scale, "expected int8"),
        (misshapen, "has shape"),
        (an_embedding, "is no linear layer's"),
    ],
)
def test_damage_is_named(
    damage: Callable[[dict[str, Tensor], str], None], said: str, tmp_path: Path
) -> None:
    save_checkpoint(load_checkpoint(SMALL, quantize="int8", device="cpu"), tmp_path)
    path = tmp_path / "model.safetensors"
    tensors = load_file(path)
    damage(tensors, next(n for n in sorted(tensors) if n.endswith("intermediate.dense.weight")))
    save_file(tensors, path)
    with pytest.raises(CheckpointError, match=said):
        load_checkpoint(tmp_path, device="cpu")


def test_what_config_says_counts(tmp_path: Path) -> None:
    save_checkpoint(load_checkpoint(SMALL, quantize="int8", device="cpu"), tmp_path)
    path = tmp_path / "config.json"
    config = json.loads(path.read_text("utf-8"))
    said = config.pop("quantization_config")
    path.write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="weight_scale"):
        load_checkpoint(tmp_path, device="cpu")
    path.write_text(json.dumps(config | {"quantization_config": said | {"linear": "int4"}}))
    with pytest.raises(CheckpointError, match=r"linear is 'int4'; served: 'int8'"):
        load_checkpoint(tmp_path, device="cpu")
    path.write_text(json.dumps(config | {"quantization_config": said | {"wide": []}}))
    with pytest.raises(CheckpointError, match=r"wide is \[\]; served: \['attention.qkv', "):
        load_checkpoint(tmp_path, device="cpu")


def test_a_row_of_zeros(tmp_path: Path) -> None:
    """Whose scale is none."""
    checkpoint = load_checkpoint(SMALL, device="cpu")
    with torch.no_grad():
        checkpoint.encoder.layers[0].attention.out.weight[2] = 0
    save_checkpoint(checkpoint, tmp_path / "plain")
    checkpoint = load_checkpoint(tmp_path / "plain", quantize="int8", device="cpu")
    save_checkpoint(checkpoint, tmp_path / "saved")
    again = load_checkpoint(tmp_path / "saved", device="cpu").encoder
    ids = torch.randint(5, 60, (2, 9))
    assert torch.equal(again(ids), checkpoint.encoder(ids))


def test_a_head_of_three_axes_stays_as_it_came(tmp_path: Path) -> None:
    shutil.copytree(SMALL, tmp_path / "model")
    path = tmp_path / "model/model.safetensors"
    conv = torch.randn(2, 3, 4)
    save_file(load_file(path) | {"cls.conv.weight": conv}, path)
    save_checkpoint(load_checkpoint(path.parent, quantize="int8", device="cpu"), tmp_path / "saved")
    again = load_checkpoint(tmp_path / "saved", device="cpu")
    assert quantization(again.encoder) == "int8"
    assert torch.equal(again.set_aside["cls.conv.weight"], conv)


def test_no_other_device() -> None:
    check_eight_bits(torch.device("cpu"))
    with pytest.raises(InputError, match='device="cpu", not cuda:0'):
        check_eight_bits(torch.device("cuda:0"))


def test_another_methods_config_is_left_to_the_tensors(tmp_path: Path) -> None:
    """A published file may have one beside plain weights."""
    checkpoint = load_checkpoint(SMALL, device="cpu")
    checkpoint.config["quantization_config"] = {"quant_method": "gptq"}
    save_checkpoint(checkpoint, tmp_path)
    assert quantization(load_checkpoint(tmp_path, device="cpu").encoder) is None


def test_a_layer_put_back_is_not_written(tmp_path: Path) -> None:
    checkpoint = load_checkpoint(SMALL, quantize="int8", device="cpu")
    other = load_checkpoint(SMALL, device="cpu").encoder
    checkpoint.encoder.layers[0].attention.out = other.layers[0].attention.out
    with pytest.raises(CheckpointError, match=r"layers\.0\.attention\.out is a .*Int8Linear"):
        save_checkpoint(checkpoint, tmp_path)


def test_transformers_refuses_it(tmp_path: Path) -> None:
    """It passes over a method that it does not know, and must not take integers for weights."""
    transformers = pytest.importorskip("transformers")
    save_checkpoint(load_checkpoint(SMALL, quantize="int8", device="cpu"), tmp_path)
    with pytest.raises((RuntimeError, ValueError), match=r"mismatch|size"):
        transformers.AutoModel.from_pretrained(tmp_path)
