"""`TextEncoder.token_logits`: the same as by token ids, text by text, and every bad input."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import pyenc
from pyenc.errors import CheckpointError, InputError, InputTypeError
from tests.conftest import GOLDEN
from tests.masked_lm import written

TEXTS = ["the cat", "", "a dog sat on the mat", "the", "why is the sky blue " * 7]

pytestmark = pytest.mark.filterwarnings("ignore::pyenc.AssumptionWarning")


@pytest.fixture(scope="module", params=["jina_mlm_prefix_h4", "modernbert_mmbert_like_h3"])
def mlm(request: pytest.FixtureRequest) -> pyenc.TextEncoder:
    return pyenc.load(GOLDEN / request.param)


def by_ids(encoder: pyenc.TextEncoder, text: str) -> np.ndarray:
    assert encoder.tokenizer is not None
    ids = torch.from_numpy(encoder.tokenizer([text], encoder.max_length)[0].ids)
    with torch.no_grad():
        return encoder.model.token_logits(ids.long()[None])[0].numpy()


@pytest.mark.parametrize("batch_tokens", [None, 1, 20])
def test_by_text_and_by_ids(mlm: pyenc.TextEncoder, batch_tokens: int | None) -> None:
    got = mlm.token_logits(TEXTS, batch_tokens=batch_tokens)
    assert len(got) == len(TEXTS)
    for text, logits in zip(TEXTS, got, strict=True):
        expected = by_ids(mlm, text)
        assert logits.dtype == np.float32
        assert logits.shape == expected.shape
        assert np.abs(logits - expected).max() <= 1e-5 * max(1, np.abs(expected).max())


def test_one_string_and_none(mlm: pyenc.TextEncoder) -> None:
    got = mlm.token_logits("the cat")
    assert isinstance(got, np.ndarray)
    assert got.shape[1] == mlm.model.config.vocab_size
    assert np.abs(got - mlm.token_logits(["the cat"])[0]).max() <= 1e-5
    assert mlm.token_logits([]) == []
    assert len(mlm.token_logits(text for text in TEXTS)) == len(TEXTS)


def test_no_prompt_is_put_before(tmp_path: Path) -> None:
    folder = written(tmp_path / "a", "jina_mlm_prefix_h4")
    plain = pyenc.load(folder).token_logits("the cat")
    prompts = {"prompts": {"query": "a dog "}, "default_prompt_name": "query"}
    (folder / "config_sentence_transformers.json").write_text(json.dumps(prompts))
    encoder = pyenc.load(folder)
    assert np.array_equal(encoder.token_logits("the cat"), plain)
    assert not np.array_equal(encoder.encode("the cat"), encoder.encode("the cat", prompt=""))


def test_half_precision_and_training(tmp_path: Path) -> None:
    encoder = pyenc.load(GOLDEN / "jina_mlm_prefix_h4", dtype="bfloat16")
    got = encoder.token_logits("the cat")
    assert got.dtype == np.float32
    for part in encoder.model.modules():
        if hasattr(part, "dropout"):
            part.dropout = 0.5
    encoder.model.train()
    assert np.array_equal(encoder.token_logits("the cat"), got)
    assert encoder.model.training


def test_long_texts(mlm: pyenc.TextEncoder) -> None:
    with pytest.warns(pyenc.TruncationWarning, match="1 of 5 texts exceed 20 tokens"):
        got = mlm.token_logits(TEXTS, max_length=20)
    assert [len(x) for x in got][-1] == 20
    with pytest.raises(InputError, match="1 of 5 texts exceed 20 tokens"):
        mlm.token_logits(TEXTS, max_length=20, on_long="error")


def test_bad_input(mlm: pyenc.TextEncoder, bert: pyenc.TextEncoder) -> None:
    with pytest.raises(InputError, match=r"no masked-LM head: the weights lack cls\.predictions"):
        bert.token_logits("a")
    with pytest.raises(InputTypeError, match="text 1 is 3"):
        mlm.token_logits(["a", 3])  # type: ignore[list-item]
    with pytest.raises(InputTypeError, match="the nearest is 'batch_tokens'"):
        mlm.token_logits("a", batch_size=3)  # type: ignore[call-arg]
    with pytest.raises(InputError, match="on_long must be"):
        mlm.token_logits("a", on_long="cut")
    with pytest.raises(InputError, match="batch_tokens must be at least 1"):
        mlm.token_logits("a", batch_tokens=0)
    with pytest.raises(InputError, match="leaves no room"):
        mlm.token_logits("a", max_length=1)


def test_without_a_tokenizer(tmp_path: Path) -> None:
    folder = written(tmp_path / "a", "mosaic_mlm_h4")
    for path in folder.glob("*tokenizer*"):
        path.unlink()
    (folder / "vocab.txt").unlink()
    with pytest.raises(CheckpointError, match="no tokenizer files"):
        pyenc.load(folder).token_logits("a")


def test_saved_and_loaded(mlm: pyenc.TextEncoder, tmp_path: Path) -> None:
    mlm.save(tmp_path)
    again = pyenc.load(tmp_path)
    assert np.array_equal(again.token_logits("the cat"), mlm.token_logits("the cat"))
