"""Texts of language models beside sentence-transformers: the last token's state, whatever is cut or
empty."""

from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import pyenc
from tests.conftest import GOLDEN

sentence_transformers = pytest.importorskip("sentence_transformers", minversion="6")
LIMITS = {
    "llama_encoder_like_h6": 4096, "mistral_e5_like_h4": 4096, "qwen2_code_like_h6": 32_768,
    "qwen2_gte_like_h4": 32_768, "qwen3_embed_like_h4": 32_768,
}  # fmt: skip
"""Golden checkpoints -> the longest text by their files."""
NAMES = tuple(LIMITS)
NEAR = 2e-5
TEXTS = [
    "", "a", " ", "two words", "The quick brown fox jumps over the lazy dog. " * 40,
    "日本語 text 🙂", "<|endoftext|>", "x " * 7, "def f(x):\n\treturn x**2\n\n", "12345 it's 'S",
]  # fmt: skip


def plain(folder: Path) -> Any:
    return sentence_transformers.SentenceTransformer(
        str(folder), device="cpu", model_kwargs={"dtype": torch.float32}
    )


def off(a: Any, b: Any) -> float:
    assert np.abs(a).max() > 0.1
    return float(np.abs(a - b).max())


@pytest.mark.parametrize("name", NAMES)
def test_verbs(name: str) -> None:
    theirs, ours = plain(GOLDEN / name), pyenc.load(GOLDEN / name)
    assert ours.max_length == theirs.max_seq_length == LIMITS[name]
    for verb in ("encode", "encode_query", "encode_document"):
        assert off(getattr(theirs, verb)(TEXTS), getattr(ours, verb)(TEXTS)) <= NEAR
    short = [text for text in TEXTS if len(text) < 30]  # than windows in all layers reach
    apart = ours.encode_query(short) - ours.encode(short)
    assert np.abs(apart).max(1).min() > 1e-2, "the prompt is seen by what comes after it"


@pytest.mark.parametrize("limit", [1, 2, 5, 17])
@pytest.mark.parametrize("name", NAMES)
def test_cut_texts_end_as_whole_ones(name: str, limit: int) -> None:
    theirs, ours = plain(GOLDEN / name), pyenc.load(GOLDEN / name)
    assert ours.tokenizer is not None
    limit = max(limit, ours.tokenizer.num_special)
    theirs.max_seq_length = limit
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", pyenc.TruncationWarning)
        assert off(theirs.encode(TEXTS), ours.encode(TEXTS, max_length=limit)) <= NEAR
        query = ours.encode_query(TEXTS, max_length=limit)
    assert off(theirs.encode_query(TEXTS), query) <= NEAR
    for tokens in ours.tokenizer(TEXTS, limit):
        assert len(tokens.ids) <= limit
        assert tokens.ids[-1] == theirs.tokenizer.pad_token_id


@torch.no_grad()
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("name", NAMES)
def test_rows_padded_on_a_side(name: str, side: str) -> None:
    theirs, ours = plain(GOLDEN / name), pyenc.load(GOLDEN / name)
    batch = theirs.tokenizer(TEXTS, padding=True, padding_side=side, return_tensors="pt")
    kept = batch["attention_mask"].bool()
    assert not kept.all()
    right = theirs[0].model(**batch).last_hidden_state
    got = ours.model(batch["input_ids"], batch["attention_mask"])
    torch.testing.assert_close(got[kept], right[kept], rtol=0, atol=NEAR)
    assert not got[~kept].any()


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("name", NAMES)
def test_a_language_model(name: str, causal: bool, tmp_path: Path) -> None:
    """Of which no file says how a vector is made: as sentence-transformers, and said aloud."""
    folder = tmp_path / "a"
    folder.mkdir()
    for file in ("model.safetensors", "tokenizer.json", "tokenizer_config.json"):
        shutil.copy(GOLDEN / name / file, folder)
    config = json.loads((GOLDEN / name / "config.json").read_text()) | {"is_causal": causal}
    # A window on both sides is not served, and e5-mistral's architecture is its encoder's.
    config |= {"sliding_window": None, "architectures": ["AnyForCausalLM"]}
    (folder / "config.json").write_text(json.dumps(config))
    pooling = "lasttoken" if causal else "mean"
    with pytest.warns(pyenc.AssumptionWarning, match=f"assumed {pooling} pooling and no normal"):
        ours = pyenc.load(folder)
    assert ours.recipe.assumed == ("pooling", "normalize")
    theirs = plain(folder)
    assert theirs[1].pooling_mode == pooling
    found = ours.encode(TEXTS)
    assert off(theirs.encode(TEXTS), found) <= NEAR
    ours.save(tmp_path / "b")
    with pytest.warns(pyenc.AssumptionWarning, match=f"assumed {pooling} pooling"):
        assert np.array_equal(pyenc.load(tmp_path / "b").encode(TEXTS), found)
    said = pyenc.load(folder, pooling="mean", normalize=True)
    said.save(tmp_path / "c")
    assert off(plain(tmp_path / "c").encode(TEXTS), said.encode(TEXTS)) <= NEAR


@pytest.mark.parametrize("name", NAMES)
def test_saved(name: str, tmp_path: Path) -> None:
    ours = pyenc.load(GOLDEN / name)
    ours.save(tmp_path)
    found = ours.encode_query(TEXTS)
    assert np.array_equal(pyenc.load(tmp_path).encode_query(TEXTS), found)
    assert off(plain(tmp_path).encode_query(TEXTS), found) <= NEAR
