"""Tokenizers that are a SentencePiece model alone: the ids that the original code gives, saved,
cut, borrowed and told."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pyenc
from pyenc.errors import CheckpointError
from pyenc.text import TextTokenizer
from tests.conftest import GOLDEN
from tests.text.sentencepiece_folders import KINDS, MODELS, checkpoint, sentencepiece
from tests.text.tokenizer_folders import edit, odd_texts

EXPECTED = json.loads((MODELS / "expected.json").read_text("utf-8"))
TEXTS: list[str] = EXPECTED["texts"]


@pytest.mark.parametrize("case", EXPECTED["cases"], ids=lambda case: case["kind"])
def test_ids_and_spans(tmp_path: Path, case: dict[str, Any]) -> None:
    """Of each class and setting, as transformers gives them."""
    words = TextTokenizer(sentencepiece(tmp_path, case["kind"], **case["config"]))
    assert words.vocab_size == case["size"]
    for number, ids in case["ids"].items():
        text = TEXTS[int(number)]
        (tokens,) = words([text], 10**6, spans=True)
        assert tokens.ids.tolist() == ids, text
        if "spans" in case:
            assert tokens.spans is not None
            assert tokens.spans.ravel().tolist() == case["spans"][number], text


def test_pieces_that_its_maker_defined(tmp_path: Path) -> None:
    """They are found inside of words, as SentencePiece itself finds them."""
    words = TextTokenizer(sentencepiece(tmp_path, "albert"))
    defined = EXPECTED["defined"]
    got = [tokens.ids.tolist() for tokens in words(defined["texts"], 999)]
    assert got == defined["ids"]
    assert words.otherwise.startswith('spiece.model has pieces that its maker defined (( ) " - .')
    assert TextTokenizer(sentencepiece(tmp_path / "t5", "t5")).otherwise == ""


@pytest.mark.parametrize("kind", KINDS)
def test_long_texts(tmp_path: Path, kind: str) -> None:
    """A text of which the first tokens count gives them as the whole of it does."""
    words = TextTokenizer(sentencepiece(tmp_path, kind))
    texts = ["".join(odd_texts(60, 12, seed=kind_seed)) for kind_seed in range(3)]
    texts += ["abcdefg" * 9000, "字你" * 20_000]
    whole = words(texts, 10**7, spans=True)
    for limit in (7, 300):
        cut = words(texts, limit, spans=True)
        for one, all_of_it in zip(cut, whole, strict=True):
            inner = limit - words.num_closing
            assert one.ids[:inner].tolist() == all_of_it.ids[:inner].tolist()
            assert one.spans is not None
            assert all_of_it.spans is not None
            assert one.spans[:inner].tolist() == all_of_it.spans[:inner].tolist()


def fitting(text: str, encoder: pyenc.TextEncoder) -> str:
    """A text without the tokens that are beyond the golden checkpoint's table."""
    assert encoder.tokenizer is not None
    known = encoder.model.config.vocab_size
    return " ".join(w for w in text.split() if max(encoder.tokenizer([w], 99)[0].ids) < known)


def test_saved_and_loaded(tmp_path: Path) -> None:
    encoder = pyenc.load(checkpoint(tmp_path / "model"))
    texts = [fitting(text, encoder) for text in ("the quick brown fox", "Naïve CAFÉ, ﬁve", "")]
    assert texts[0]
    right = encoder.encode(texts)
    encoder.save(tmp_path / "saved")
    assert (tmp_path / "saved/spm.model").read_bytes() == (MODELS / "deberta.model").read_bytes()
    again = pyenc.load(tmp_path / "saved")
    assert again.tokenizer is not None
    assert encoder.tokenizer is not None
    assert again.tokenizer.same_rules(encoder.tokenizer)
    assert (again.encode(texts) == right).all()
    # As tokenizer.json it is taken as it is by any class.
    whole = tmp_path / "whole"
    whole.mkdir()
    (whole / "tokenizer.json").write_bytes(encoder.tokenizer.as_file())
    config = '{"tokenizer_class": "PreTrainedTokenizerFast"}'
    (whole / "tokenizer_config.json").write_text(config)
    assert TextTokenizer(whole).same_rules(encoder.tokenizer)


def test_borrowed(tmp_path: Path) -> None:
    """Beside another checkpoint's config.json, saved with it, and by a text of its own class."""
    source = checkpoint(tmp_path / "source")
    lacking = tmp_path / "model"
    shutil.copytree(GOLDEN / "deberta_v3_like_h4", lacking)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (lacking / name).unlink()
    encoder = pyenc.load(lacking, tokenizer=source)
    right = pyenc.load(source)
    text = fitting("the quick brown fox jumps", right)
    assert np.array_equal(encoder.encode(text), right.encode(text))
    encoder.save(tmp_path / "saved")
    again = pyenc.load(tmp_path / "saved")
    assert np.array_equal(again.encode(text), right.encode(text))


def test_the_class_decides(tmp_path: Path) -> None:
    """Which model's file is read, and whether one is at all."""
    folder = sentencepiece(tmp_path / "two", "xlm-roberta")
    shutil.copyfile(MODELS / "bpe.model", folder / "spm.model")
    assert TextTokenizer(folder).made_of == ("sentencepiece.bpe.model",)
    (folder / "sentencepiece.bpe.model").unlink()
    wanted = "XLMRobertaTokenizer cannot be made of it; expected sentencepiece.bpe.model, or token"
    with pytest.raises(CheckpointError, match=rf"spm.model: tokenizer_class {wanted}"):
        TextTokenizer(folder)
    edit(folder / "tokenizer_config.json", lambda old: {"tokenizer_class": "BertTokenizer"})
    with pytest.raises(CheckpointError, match=r"BertTokenizer cannot be made of it; expected tok"):
        TextTokenizer(folder)
    (folder / "tokenizer_config.json").unlink()
    (folder / "config.json").unlink()
    with pytest.raises(CheckpointError, match="PreTrainedTokenizerFast cannot be made of it"):
        TextTokenizer(folder)
