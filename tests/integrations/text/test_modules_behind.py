"""Poolings and the modules behind them, written by sentence-transformers and read by pyenc, and the
other way round: the same vectors."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import pyenc
from tests.conftest import GOLDEN

sentence_transformers = pytest.importorskip("sentence_transformers", minversion="6")

from sentence_transformers.base.modules import Dense, Normalize, Transformer
from sentence_transformers.sentence_transformer.modules import LayerNorm, Pooling

from pyenc.integrations.borrowed import batches
from pyenc.integrations.sentence_transformers import modules
from pyenc.text.dense import DENSE_ACTIVATIONS

pytestmark = pytest.mark.filterwarnings(
    "ignore::pyenc.TruncationWarning", "ignore::pyenc.PromptWarning"
)
NEAR = 2e-5
TEXTS = [
    "", "a", "two words", "The quick brown fox jumps over the lazy dog. " * 6, "x " * 7, "\n\t ",
    "日本語 text 🙂", "Zwölf Boxkämpfer",
]  # fmt: skip
POOLINGS: list[Any] = [
    "weightedmean", "mean_sqrt_len_tokens", ("cls", "mean"), ("mean", "cls"), ("max", "max"),
    ("lasttoken", "weightedmean", "mean_sqrt_len_tokens", "mean", "max", "cls"),
]  # fmt: skip
OLD = {
    "pooling_mode_lasttoken": True, "pooling_mode_weightedmean_tokens": True,
    "pooling_mode_mean_sqrt_len_tokens": True, "pooling_mode_mean_tokens": False,
    "pooling_mode_max_tokens": True, "pooling_mode_cls_token": True,
}  # fmt: skip


def plain(folder: Path, dtype: torch.dtype = torch.float32) -> Any:
    return sentence_transformers.SentenceTransformer(
        str(folder), device="cpu", model_kwargs={"dtype": dtype}
    )


def off(a: Any, b: Any) -> float:
    assert np.abs(a).max() > 1e-3
    return float(np.abs(np.asarray(a, np.float64) - np.asarray(b, np.float64)).max())


def written(folder: Path, name: str, *behind: Any) -> Path:
    """A model of sentence-transformers with these modules behind the first, saved."""
    first = Transformer(str(GOLDEN / name))
    model = sentence_transformers.SentenceTransformer(modules=[first, *behind], device="cpu")
    model.max_seq_length = 60
    model.save_pretrained(str(folder))
    return folder


def layers(width: int, activation: str = "GELU") -> list[Any]:
    torch.manual_seed(5)
    norm = LayerNorm(width)
    with torch.no_grad():
        norm.norm.weight.normal_()
        norm.norm.bias.normal_()
    return [norm, Dense(width, 10, activation_function=getattr(torch.nn, activation)())]


def compare(folder: Path, tmp_path: Path) -> None:
    """All that a call may ask for, from the folder and from what pyenc saves of it."""
    theirs, ours = plain(folder), pyenc.load(folder)
    ours.save(tmp_path / "saved")
    back = plain(tmp_path / "saved")
    asked: list[tuple[dict[str, Any], dict[str, Any]]] = [
        ({}, {}),
        ({"prompt": "why is it so: "},) * 2,
        ({"prompt_name": "query"},) * 2,
        ({"truncate_dim": 7}, {"truncate_dim": 7}),
        ({"truncate_dim": 7, "normalize_embeddings": True}, {"truncate_dim": 7, "normalize": True}),
    ]
    for there, here in asked:
        if "truncate_dim" in there and isinstance(theirs[-1], Normalize):
            continue  # theirs is cut afterwards, the call's of ours before
        right = theirs.encode(TEXTS, **there)
        assert off(right, ours.encode(TEXTS, **here)) <= NEAR * max(1, np.abs(right).max())
        assert off(right, ours.encode(TEXTS, batch_tokens=9, **here)) <= NEAR * max(
            1, np.abs(right).max()
        )
        assert off(right, back.encode(TEXTS, **there)) <= NEAR * max(1, np.abs(right).max())


@pytest.mark.parametrize("include", [True, False])
@pytest.mark.parametrize("pooling", POOLINGS, ids=str)
def test_poolings(tmp_path: Path, pooling: Any, include: bool) -> None:
    behind = Pooling(64, pooling_mode=pooling, include_prompt=include)
    compare(written(tmp_path / "model", "bert_mean_h4", behind), tmp_path)


@pytest.mark.parametrize("pooling", ["weightedmean", ("cls", "mean_sqrt_len_tokens")], ids=str)
@pytest.mark.parametrize("name", ["qwen3_embed_like_h4", "xlmr_e5_like_h2"])
def test_poolings_of_rows_padded_on_either_side(tmp_path: Path, name: str, pooling: Any) -> None:
    width = json.loads((GOLDEN / name / "config.json").read_text())["hidden_size"]
    behind = Pooling(width, pooling_mode=pooling, include_prompt=False)
    compare(written(tmp_path / "model", name, behind), tmp_path)


def test_the_older_keys_of_several_poolings(tmp_path: Path) -> None:
    folder = written(tmp_path / "model", "bert_mean_h4", Pooling(64), Normalize())
    (folder / "1_Pooling/config.json").write_text(
        json.dumps({"word_embedding_dimension": 64, "include_prompt": False} | OLD)
    )
    compare(folder, tmp_path)


def test_several_poolings_a_layer_norm_and_a_dense_layer(tmp_path: Path) -> None:
    behind = [Pooling(64, pooling_mode=("weightedmean", "cls")), *layers(128)]
    folder = written(tmp_path / "model", "bert_mean_h4", *behind)
    compare(folder, tmp_path)
    right = plain(folder, torch.float16).encode(TEXTS)
    here = pyenc.load(folder, dtype="float16").encode(TEXTS)
    assert off(right, here) <= 2e-2 * np.abs(right).max()


@pytest.mark.parametrize("activation", DENSE_ACTIVATIONS)
def test_activations(tmp_path: Path, activation: str) -> None:
    """As it writes them, and makes them again of their names."""
    behind = [Pooling(64), *layers(64, activation)[1:]]
    folder = written(tmp_path / "model", "bert_cls_h2", *behind)
    right = plain(folder).encode(TEXTS)
    assert off(right, pyenc.load(folder).encode(TEXTS)) <= NEAR


@pytest.mark.parametrize("name", ["xlmr_e5_like_h2", "llama_encoder_like_h6"])
def test_a_padding_id_of_minus_one(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for each in ("SMALL", "SMALL_PACKED"):  # else its own code would be run
        monkeypatch.setattr(batches, each, 0)
    folder = tmp_path / "model"
    shutil.copytree(GOLDEN / name, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"pad_token_id": -1}))
    theirs, ours = plain(folder), pyenc.load(folder)
    assert ours.max_length == theirs.max_seq_length
    theirs.max_seq_length = ours.max_length = min(ours.max_length, 60)
    right = theirs.encode(TEXTS)
    assert off(right, ours.encode(TEXTS)) <= NEAR
    ours.save(tmp_path / "saved")
    assert off(right, pyenc.load(tmp_path / "saved").encode(TEXTS, max_length=60)) <= NEAR
    accelerated = pyenc.accelerate(plain(folder))
    assert isinstance(accelerated[0], modules.PackedTransformer)
    accelerated.max_seq_length = theirs.max_seq_length
    assert off(right, accelerated.encode(TEXTS)) <= NEAR


def test_prompts_that_no_file_says(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(GOLDEN / "bert_mean_h4", folder)
    for said in ({}, {"prompts": {"passage": "p: "}, "default_prompt_name": "document"}):
        (folder / "config_sentence_transformers.json").write_text(json.dumps(said))
        theirs, ours = plain(folder), pyenc.load(folder)
        for name in (None, "query", "document", *said.get("prompts", ())):
            right = theirs.encode(TEXTS, prompt_name=name)
            assert off(right, ours.encode(TEXTS, prompt_name=name)) <= NEAR
        with pytest.raises(ValueError, match="clustering"):
            theirs.encode(TEXTS, prompt_name="clustering")
        with pytest.raises(pyenc.errors.InputError, match="clustering"):
            ours.encode(TEXTS, prompt_name="clustering")
