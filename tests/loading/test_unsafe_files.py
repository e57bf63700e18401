"""Damaged and hostile weight files: refused with the file's name, and nothing in them is run."""

from __future__ import annotations

import io
import os
import pickle
import shutil
import struct
import warnings
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import Parameter

import pyenc
from pyenc.errors import CheckpointError
from pyenc.loading import load_checkpoint, save_checkpoint
from tests.conftest import GOLDEN

with warnings.catch_warnings():  # they are a prototype
    warnings.simplefilter("ignore")
    NESTED = torch.nested.nested_tensor([torch.zeros(2), torch.zeros(3)])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A checkpoint folder without weights."""
    shutil.copy(GOLDEN / "bert_mean_h4" / "config.json", tmp_path)
    return tmp_path


@pytest.fixture
def safetensors(folder: Path) -> Path:
    return Path(shutil.copy(GOLDEN / "bert_mean_h4" / "model.safetensors", folder))


def refused(folder: Path, file: str, *messages: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(folder)
    for message in (file, *messages):
        assert message in str(caught.value)


@pytest.mark.parametrize("keep", [0, 4, 100, 5000, -1])
def test_truncated_safetensors(safetensors: Path, keep: int) -> None:
    safetensors.write_bytes(safetensors.read_bytes()[:keep])
    refused(safetensors.parent, "model.safetensors: not a readable safetensors file")


@pytest.mark.parametrize("size", [2**63, 2**40, 2**27, 0])
def test_absurd_header(safetensors: Path, size: int) -> None:
    safetensors.write_bytes(struct.pack("<Q", size) + safetensors.read_bytes()[8:])
    refused(safetensors.parent, "model.safetensors: not a readable safetensors file")


def test_header_of_nonsense(safetensors: Path) -> None:
    safetensors.write_bytes(struct.pack("<Q", 8) + b'{"a": 1}' + b"\0" * 64)
    refused(safetensors.parent, "model.safetensors: not a readable safetensors file")


class Bomb:
    """Runs a command when it is unpickled, if anybody lets it."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.trace),)


@pytest.mark.parametrize("zipped", [True, False])
def test_code_in_a_pickle(folder: Path, zipped: bool) -> None:
    trace = folder / "it-ran"
    content = {"embeddings.word_embeddings.weight": torch.zeros(2), "extra": Bomb(trace)}
    torch.save(content, folder / "pytorch_model.bin", _use_new_zipfile_serialization=zipped)
    refused(folder, "pytorch_model.bin: refused, it holds more than tensors", "none was run")
    assert not trace.exists()
    # The bomb is live: plain pickle sets it off.
    pickle.loads(pickle.dumps(Bomb(trace)))
    assert trace.exists()


@pytest.mark.parametrize("zipped", [True, False])
def test_what_is_in_a_pickle_is_named(folder: Path, zipped: bool) -> None:
    """And torch's advice to load such a file without a look is not handed on."""
    content = {"extra": torch.nn.Linear(2, 2)}
    torch.save(content, folder / "pytorch_model.bin", _use_new_zipfile_serialization=zipped)
    with pytest.raises(
        CheckpointError, match=r"GLOBAL torch\.nn\.modules\.linear\.Linear"
    ) as error:
        load_checkpoint(folder)
    assert "trust" not in str(error.value)
    assert "weights_only" not in str(error.value)


def test_a_page_in_the_place_of_a_torch_file(folder: Path) -> None:
    """Which is no pickle, and says nothing of what it would run."""
    (folder / "pytorch_model.bin").write_text("<!DOCTYPE html><title>Not found</title>")
    refused(folder, "pytorch_model.bin: not a torch file, it begins with b'<!DOCTYPE html>")


@pytest.mark.parametrize(
    "name", ["model.safetensors", "pytorch_model.bin", "config.json", "tokenizer.json", "vocab.txt"]
)
def test_a_pointer_of_git_lfs(tmp_path: Path, name: str) -> None:
    """What git leaves of a large file where git-lfs is not installed."""
    folder = shutil.copytree(GOLDEN / "bert_mean_h4", tmp_path / "checkpoint")
    if name == "pytorch_model.bin":
        (folder / "model.safetensors").unlink()
    if name == "vocab.txt":
        (folder / "tokenizer.json").unlink()
    pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{64 * 'a'}\nsize 90868376\n"
    (folder / name).write_text(pointer)
    with pytest.raises(CheckpointError, match=f"{name}: a pointer of Git LFS.*git lfs pull"):
        pyenc.load(folder)


def test_plain_pickle(folder: Path) -> None:
    trace = folder / "it-ran"
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps({"x": Bomb(trace)}, protocol=2))
    refused(folder, "pytorch_model.bin")
    assert not trace.exists()


def repacked(folder: Path, compression: int, grow: int = 0) -> Path:
    """A torch file rewritten: compressed, or with an entry of zeros added."""
    path = folder / "pytorch_model.bin"
    buffer = io.BytesIO()
    torch.save(load_file(GOLDEN / "bert_mean_h4" / "model.safetensors"), buffer)
    with zipfile.ZipFile(buffer) as old, zipfile.ZipFile(path, "w", compression) as new:
        for entry in old.infolist():
            new.writestr(entry.filename, old.read(entry))
        if grow:
            new.writestr("archive/data/bomb", b"\0" * grow)
    return path


def test_zip_bomb(folder: Path) -> None:
    path = repacked(folder, zipfile.ZIP_DEFLATED, grow=64 * 2**20)
    assert path.stat().st_size < 2**20
    refused(folder, "pytorch_model.bin: refused, entry", "is compressed")


def test_entries_that_claim_more_than_the_file_has(folder: Path) -> None:
    path = repacked(folder, zipfile.ZIP_STORED, grow=1000)
    data = bytearray(path.read_bytes())
    at = data.rfind(b"PK\x01\x02")  # the last entry of the central directory
    data[at + 20 : at + 28] = struct.pack("<II", 2**31, 2**31)
    path.write_bytes(data)
    refused(folder, "pytorch_model.bin: refused, its entries claim")


def test_a_damaged_list_of_entries(folder: Path) -> None:
    path = repacked(folder, zipfile.ZIP_STORED)
    data = path.read_bytes()
    at = data.index(b"PK\x01\x02")
    path.write_bytes(data[:at] + b"PK\x01\x03" + data[at + 4 :])
    refused(folder, "pytorch_model.bin: damaged zip archive")


def test_truncated_torch_file(folder: Path) -> None:
    path = repacked(folder, zipfile.ZIP_STORED)
    whole = path.read_bytes()
    for keep in (0, 10, len(whole) // 2, len(whole) - 10):
        path.write_bytes(whole[:keep])
        refused(folder, "pytorch_model.bin")


def test_a_stride_of_zero(folder: Path) -> None:
    huge = torch.zeros(1).expand(10**6, 10**6)
    torch.save({"encoder.layer.0.intermediate.dense.weight": huge}, folder / "pytorch_model.bin")
    refused(folder, "pytorch_model.bin", "claims shape (1000000, 1000000), more than is stored")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([torch.zeros(1)], "expected a dict of tensors, got list"),
        ({"weights": {"x": torch.zeros(1)}}, "'weights' is a dict, expected tensors"),
        (
            {"state_dict": {"x": torch.zeros(1)}, "optimizer": {"lr": 0.1}},
            "'optimizer' is a dict, expected only numbers beside 'state_dict'",
        ),
        ({"model": {"x": torch.zeros(1)}, "y": torch.zeros(1)}, "'y' is a Tensor, expected only"),
        ({"model": {"x": {"y": torch.zeros(1)}}}, "'x' is a dict, expected tensors by name"),
        ({"state_dict": {}, "model": {}}, "'model' is a dict, expected only numbers"),
        ({0: torch.zeros(1)}, "0 is a Tensor, expected tensors by name"),
        ({"x": torch.zeros(4).to_sparse()}, "'x' is torch.sparse_coo, not dense"),
        # From 2.15 on torch does not read one.
        ({"x": NESTED}, "nested"),
    ],
)
def test_other_contents(folder: Path, content: object, message: str) -> None:
    torch.save(content, folder / "pytorch_model.bin")
    refused(folder, "pytorch_model.bin", message)


@pytest.mark.parametrize("key", ["state_dict", "model_state_dict", "model", "module"])
def test_the_file_of_a_training_loop(folder: Path, key: str) -> None:
    tensors = load_file(GOLDEN / "bert_mean_h4" / "model.safetensors")
    wrapped = {f"module.{name}": tensor for name, tensor in tensors.items()}
    content = {"epoch": 3, "loss": 0.25, "best": True, key: wrapped}
    torch.save(content, folder / "pytorch_model.bin")
    state = load_checkpoint(folder).encoder.state_dict()
    plain = load_checkpoint(GOLDEN / "bert_mean_h4").encoder.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in plain.items())
    huge = torch.zeros(1).expand(10**6, 10**6)
    torch.save(content | {key: {"x": huge}}, folder / "pytorch_model.bin")
    refused(folder, "'x' claims shape (1000000, 1000000), more than is stored")
    torch.save(content | {"extra": Bomb(folder / "it-ran")}, folder / "pytorch_model.bin")
    refused(folder, "pytorch_model.bin: refused, it holds more than tensors", "none was run")
    assert not (folder / "it-ran").exists()


def mlm(folder: Path, **more: Tensor) -> Path:
    """A MosaicBERT in a pickle, whose decoder is its embeddings, with more tensors."""
    shutil.copy(GOLDEN / "mosaic_mlm_h4" / "config.json", folder)
    path = folder / "pytorch_model.bin"
    tensors = torch.load(GOLDEN / "mosaic_mlm_h4" / "pytorch_model.bin", weights_only=True)
    tensors["cls.predictions.decoder.weight"] = tensors["bert.embeddings.word_embeddings.weight"]
    torch.save({**tensors, **{f"cls.{name}": tensor for name, tensor in more.items()}}, path)
    return path


def test_many_views_of_one_storage(folder: Path) -> None:
    """300 windows of 4 MB were 1.3 GB of the reader's memory."""
    base = torch.zeros(2**20)
    path = mlm(folder, **{f"x{i}": base[i : i + 2**20 - 300] for i in range(300)})
    assert path.stat().st_size < 6 * 2**20
    refused(folder, "pytorch_model.bin: tensor 'cls.x1' overlaps others", "more than is stored")


def test_one_tensor_under_too_many_names(folder: Path) -> None:
    base = torch.zeros(2**20)
    mlm(folder, **{f"x{i}": base for i in range(300)})
    refused(folder, "pytorch_model.bin: its tensors claim 1,258,", "too many are one")


def test_ties_and_parts_of_a_storage_are_welcome(folder: Path, tmp_path: Path) -> None:
    base = torch.arange(12.0)
    mlm(folder, a=base[:4], b=base[4:], c=base[4:], d=base[4:])
    checkpoint = load_checkpoint(folder)
    assert "cls.predictions.decoder.weight" in checkpoint.tied
    aside = checkpoint.set_aside
    assert aside["cls.b"].data_ptr() == aside["cls.c"].data_ptr() == aside["cls.d"].data_ptr()
    save_checkpoint(checkpoint, tmp_path / "saved")
    after = load_file(tmp_path / "saved" / "model.safetensors")
    for name, expected in (("a", base[:4]), ("b", base[4:]), ("c", base[4:]), ("d", base[4:])):
        assert torch.equal(after[f"cls.{name}"], expected)


def test_a_tensor_without_values(folder: Path) -> None:
    mlm(folder, x=torch.empty(3, device="meta"))
    refused(folder, "pytorch_model.bin: tensor 'cls.x' is on 'meta', it has no values")


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
@pytest.mark.filterwarnings("ignore:TypedStorage is deprecated")
def test_a_quantised_tensor(folder: Path) -> None:
    quantised = torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8)
    mlm(folder, x=quantised)
    refused(folder, "pytorch_model.bin: tensor 'cls.x' is torch.qint8", "quantised weights")


def test_parameters_in_a_pickle(folder: Path) -> None:
    """Saved with their wish for a gradient; what is loaded has none yet."""
    tensors = load_file(GOLDEN / "bert_mean_h4" / "model.safetensors")
    wrapped = {n: Parameter(t) if t.is_floating_point() else t for n, t in tensors.items()}
    torch.save(wrapped, folder / "pytorch_model.bin")
    assert all(p.is_leaf for p in load_checkpoint(folder).encoder.parameters())
