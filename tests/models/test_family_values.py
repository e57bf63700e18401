"""Values of `config.json` that one family alone reads, or that only some saves have."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

import pyenc
from pyenc.errors import CheckpointError
from pyenc.loading.weights import WeightFiles
from tests.conftest import GOLDEN


def edited(name: str, tmp_path: Path, **said: Any) -> Path:
    """A copy of a golden checkpoint with other values; `None` takes a key away."""
    folder = tmp_path / "model"
    shutil.copytree(GOLDEN / name, folder, dirs_exist_ok=True)
    config = json.loads((folder / "config.json").read_text()) | said
    (folder / "config.json").write_text(
        json.dumps({key: value for key, value in config.items() if value is not None})
    )
    return folder


@pytest.mark.parametrize("said", [1, "RobertaModel", [1], {"a": 1}, [["RobertaModel"]], True])
def test_architectures_that_are_no_list_of_names(tmp_path: Path, said: Any) -> None:
    folder = edited("roberta_distil_like_h4", tmp_path, model_type=None, architectures=said)
    with pytest.raises(CheckpointError, match=r"config.json: architectures must be a list of clas"):
        pyenc.load(folder)


def test_architectures_name_the_family(tmp_path: Path) -> None:
    right = pyenc.load(GOLDEN / "roberta_distil_like_h4").encode("the sky")
    said: dict[str, Any] = {"model_type": None, "architectures": ["RobertaModel"]}
    folder = edited("roberta_distil_like_h4", tmp_path, **said)
    (folder / "tokenizer_config.json").write_text(
        json.dumps(
            json.loads((folder / "tokenizer_config.json").read_text())
            | {"tokenizer_class": "RobertaTokenizer"}
        )
    )
    assert (pyenc.load(folder).encode("the sky") == right).all()


@pytest.mark.parametrize(
    ("said", "other"),
    [
        ("gelu", "gelu_python"),
        ("gelu_new", "gelu_python_tanh"),
        ("gelu_new", "gelu_accurate"),
        ("gelu_new", "gelu_fast"),
    ],
)
def test_other_names_of_gelu(said: str, other: str, tmp_path: Path) -> None:
    right, again = (
        pyenc.load(edited("bert_mean_h4", tmp_path, hidden_act=name)).encode("the sky")
        for name in (said, other)
    )
    assert (again == right).all()


def test_a_head_for_questions_beside_t5(tmp_path: Path) -> None:
    """As T5ForQuestionAnswering has it: set aside, and saved again."""
    folder = edited("t5_mean_relu_h4", tmp_path)
    right = pyenc.load(folder).encode("the sky")
    tensors = torch.load(folder / "pytorch_model.bin", weights_only=True)
    width = tensors["encoder.final_layer_norm.weight"].shape[0]
    head = {"qa_outputs.weight": torch.randn(2, width), "qa_outputs.bias": torch.randn(2)}
    torch.save(tensors | head, folder / "pytorch_model.bin")
    encoder = pyenc.load(folder)
    assert (encoder.encode("the sky") == right).all()
    encoder.save(tmp_path / "saved")
    saved = WeightFiles(tmp_path / "saved")
    assert all(torch.equal(saved.read(name), tensor) for name, tensor in head.items())
