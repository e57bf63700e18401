"""Saving and loading give equal tensors under the original names, heads included."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from pyenc.errors import CheckpointError
from pyenc.loading import load_checkpoint, save, save_checkpoint
from tests.conftest import GOLDEN, Golden


def stored(folder: Path) -> dict[str, Tensor]:
    if (folder / "model.safetensors").is_file():
        return load_file(folder / "model.safetensors")
    tensors: dict[str, Tensor] = torch.load(folder / "pytorch_model.bin", weights_only=True)
    return tensors


def test_round_trip(golden: Golden, tmp_path: Path) -> None:
    checkpoint = load_checkpoint(golden.folder, dtype="auto")
    save_checkpoint(checkpoint, tmp_path)
    before, after = stored(golden.folder), stored(tmp_path)
    assert after.keys() == before.keys()
    for name, tensor in before.items():
        assert after[name].dtype == tensor.dtype, name
        assert torch.equal(after[name], tensor), name
    again = load_checkpoint(tmp_path, dtype="auto").encoder.state_dict()
    for name, tensor in checkpoint.encoder.state_dict().items():
        assert torch.equal(again[name], tensor), name


def test_cast_up_and_saved_keeps_the_values(tmp_path: Path) -> None:
    golden = GOLDEN / "mosaic_base_h12"
    save_checkpoint(load_checkpoint(golden), tmp_path)
    after = stored(tmp_path)
    for name, tensor in stored(golden).items():
        assert torch.equal(after[name], tensor.float())


def test_a_tied_head_follows_the_embedding(tmp_path: Path) -> None:
    checkpoint = load_checkpoint(GOLDEN / "mosaic_mlm_h4")
    assert checkpoint.tied == {"cls.predictions.decoder.weight": "embeddings.word.weight"}
    with torch.no_grad():
        checkpoint.encoder.embeddings.word.weight += 1
    save_checkpoint(checkpoint, tmp_path)
    after = stored(tmp_path)
    assert torch.equal(
        after["cls.predictions.decoder.weight"], after["bert.embeddings.word_embeddings.weight"]
    )


def test_over_itself(tmp_path: Path) -> None:
    """Saving into the folder that was loaded from is safe: nothing of it is mapped."""
    save_checkpoint(load_checkpoint(GOLDEN / "jina_qk_h6"), tmp_path)
    checkpoint = load_checkpoint(tmp_path)
    save_checkpoint(checkpoint, tmp_path)
    again = load_checkpoint(tmp_path).encoder.state_dict()
    assert all(torch.equal(t, again[n]) for n, t in checkpoint.encoder.state_dict().items())
    assert not list(tmp_path.glob("*.partial"))


def test_nowhere_to_save(tmp_path: Path) -> None:
    checkpoint = load_checkpoint(GOLDEN / "jina_qk_h6")
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="a file stands where"):
        save_checkpoint(checkpoint, tmp_path / "file")
    with pytest.raises(CheckpointError, match="leads out of"):
        save_checkpoint(checkpoint, tmp_path / "x", {"../escaped": b""})
    assert not (tmp_path / "escaped").exists()
    for place in (tmp_path / "file" / "below", tmp_path / ("a" * 5000)):
        with pytest.raises(CheckpointError, match=r"(below|aaa): cannot be written"):
            save_checkpoint(checkpoint, place)


def test_weights_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").mkdir()
    with pytest.raises(CheckpointError, match=f"{tmp_path}: cannot be written"):
        save_checkpoint(load_checkpoint(GOLDEN / "jina_qk_h6"), tmp_path)
    assert not list(tmp_path.glob("*.partial"))


def test_weights_that_would_not_load_again(tmp_path: Path) -> None:
    """Refused while there is an encoder to mend, and nothing is written."""
    for value in (torch.nan, -torch.inf):
        checkpoint = load_checkpoint(GOLDEN / "jina_qk_h6")
        with torch.no_grad():
            checkpoint.encoder.embeddings.word.weight[3, 5] = value
        message = rf"parameter embeddings\.word\.weight has {value} at \(3, 5\), which would not"
        with pytest.raises(CheckpointError, match=message):
            save_checkpoint(checkpoint, tmp_path / "saved")
    checkpoint = load_checkpoint(GOLDEN / "jina_qk_h6")
    checkpoint.encoder.embeddings.word.to(torch.float8_e4m3fn)
    with pytest.raises(CheckpointError, match=r"weight is torch\.float8_e4m3fn, which would not"):
        save_checkpoint(checkpoint, tmp_path / "saved")
    assert not (tmp_path / "saved").exists()


def test_saved_by_two_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As of processes that train together: neither writes into what the other is writing."""
    checkpoint = load_checkpoint(GOLDEN / "jina_qk_h6")
    save_file, places = save.save_file, list[Path]()

    def within(tensors: dict[str, torch.Tensor], path: Path, **options: Any) -> None:
        save_file(tensors, path, **options)
        places.append(path)
        if len(places) == 1:
            save_checkpoint(checkpoint, tmp_path)
            assert path.exists()

    monkeypatch.setattr(save, "save_file", within)
    save_checkpoint(checkpoint, tmp_path)
    assert len(set(places)) == 2
    again = load_checkpoint(tmp_path).encoder.state_dict()
    assert all(torch.equal(t, again[n]) for n, t in checkpoint.encoder.state_dict().items())
    assert not list(tmp_path.glob("*.partial"))


def test_pickled_checkpoint(golden: Golden) -> None:
    checkpoint = load_checkpoint(golden.folder)
    again = pickle.loads(pickle.dumps(checkpoint))
    assert again.family is checkpoint.family
    for name, tensor in checkpoint.encoder.state_dict().items():
        assert torch.equal(again.encoder.state_dict()[name], tensor)
