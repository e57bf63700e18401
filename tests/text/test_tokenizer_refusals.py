"""Tokenizers that give types to their tokens, or whose library gives up."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

import pyenc
from pyenc.errors import CheckpointError, InputError
from pyenc.text import TextTokenizer
from pyenc.text.faults import TokenizerPanic, panics_as_errors
from tests.conftest import GOLDEN
from tests.text.tokenizer_folders import edit

STRIP = {"type": "Strip", "strip_left": True, "strip_right": True}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A checkpoint whose tokenizer.json is taken as it is."""
    shutil.copytree(GOLDEN / "bert_mean_h4", tmp_path / "model")
    said = {"tokenizer_class": "PreTrainedTokenizerFast"}
    edit(tmp_path / "model/tokenizer_config.json", lambda old: old | said)
    return tmp_path / "model"


def typed(folder: Path) -> None:
    """Gives the text's own tokens, and what closes it, the type 1."""

    def change(whole: dict[str, Any]) -> dict[str, Any]:
        for piece in whole["post_processor"]["single"][1:]:
            next(iter(piece.values()))["type_id"] = 1
        return whole

    edit(folder / "tokenizer.json", change)


def broken(folder: Path, normalizer: dict[str, Any]) -> None:
    """An added token that the normaliser takes away from under the library."""
    token = {"content": "\n", "normalized": True, "special": False}
    added = {str(TextTokenizer(folder).vocab_size): token}
    edit(folder / "tokenizer.json", lambda old: old | {"normalizer": normalizer})
    edit(folder / "tokenizer_config.json", lambda old: old | {"added_tokens_decoder": added})


def test_types_of_tokens_that_the_model_would_be_given(folder: Path, tmp_path: Path) -> None:
    plain = pyenc.load(folder).encode("the sky")
    typed(folder)
    (folder / "special_tokens_map.json").unlink()
    without = {"model_input_names": ["input_ids", "attention_mask"]}
    edit(folder / "tokenizer_config.json", lambda old: old | without)
    assert (pyenc.load(folder).encode("the sky") == plain).all()
    names = {"model_input_names": ["input_ids", "token_type_ids", "attention_mask"]}
    edit(folder / "tokenizer_config.json", lambda old: old | names)
    message = "the tokenizer gives its tokens other types than 0"
    with pytest.raises(CheckpointError, match=message):
        pyenc.load(folder)
    with pytest.raises(CheckpointError, match=message):
        pyenc.load(GOLDEN / "bert_mean_h4", tokenizer=folder)
    # A class that builds what stands around a text itself does not read the file's.
    edit(folder / "tokenizer_config.json", lambda old: old | {"tokenizer_class": "BertTokenizer"})
    assert (pyenc.load(folder).encode("the sky") == plain).all()


def test_a_model_without_token_types_is_given_none(folder: Path) -> None:
    names = {"model_input_names": ["input_ids", "token_type_ids", "attention_mask"]}
    typed(folder)
    edit(folder / "tokenizer_config.json", lambda old: old | names)
    assert TextTokenizer(folder).token_types
    model = GOLDEN / "distilbert_h4"
    assert pyenc.load(model, tokenizer=folder).model.config.type_vocab_size == 0


def test_a_panic_at_load(folder: Path) -> None:
    prepend = {"type": "Prepend", "prepend": "▁"}
    broken(folder, {"type": "Sequence", "normalizers": [STRIP, prepend]})
    with pytest.raises(CheckpointError, match=r"model: the tokenizer fails on the shortest of tex"):
        pyenc.load(folder)


def test_a_panic_names_its_text(folder: Path) -> None:
    broken(folder, STRIP)
    encoder = pyenc.load(folder)
    texts = ["the sky", "a fox", "é  ", "the end"]
    message = "text 2: the tokenizer failed: the tokenizers library panicked"
    with pytest.raises(InputError, match=message):
        encoder.encode(texts)
    with pytest.raises(InputError, match=message):
        list(encoder.encode_stream(texts))
    with pytest.raises(InputError, match="text 1 is not valid Unicode"):
        encoder.encode(["é  ", "\ud800"])
    assert encoder.tokenizer is not None
    with pytest.raises(InputError, match="the tokenizer failed on the prompt 'é  '"):
        encoder.tokenizer.prompt_length("é  ")
    assert encoder.encode("the sky").shape == (64,)


def test_what_is_no_panic_passes() -> None:
    panic = type("PanicException", (BaseException,), {})
    message = "the tokenizers library panicked: why"
    with pytest.raises(TokenizerPanic, match=message), panics_as_errors():
        raise panic("why")
    for error in (KeyboardInterrupt, SystemExit, ValueError):
        with pytest.raises(error), panics_as_errors():
            raise error


@pytest.mark.parametrize("where", ["sentence_bert_config.json", "tokenizer_config.json"])
def test_a_limit_without_room_for_the_special_tokens(folder: Path, where: str) -> None:
    key = "max_seq_length" if where.startswith("sentence") else "model_max_length"
    (folder / "sentence_bert_config.json").write_text("{}")
    edit(folder / where, lambda old: old | {key: 2})
    assert pyenc.load(folder).max_length == 2
    edit(folder / where, lambda old: old | {key: 1})
    message = r"its files set a limit of 1 tokens \(max_seq_length in .* the 2 special tokens"
    with pytest.raises(CheckpointError, match=message):
        pyenc.load(folder)


def test_the_last_token_needs_no_room_after_a_prompt(folder: Path) -> None:
    config = {"pooling_mode": "lasttoken", "include_prompt": False}
    (folder / "1_Pooling/config.json").write_text(json.dumps(config))
    encoder = pyenc.load(folder)
    prompt = "the sky " * 9
    with pytest.warns(pyenc.TruncationWarning):
        left_out = encoder.encode("a fox", prompt=prompt, max_length=12)
    (folder / "1_Pooling/config.json").write_text(json.dumps(config | {"include_prompt": True}))
    with pytest.warns(pyenc.TruncationWarning):
        right = pyenc.load(folder).encode("a fox", prompt=prompt, max_length=12)
    assert (left_out == right).all()


def test_no_tokenizer_that_is_read(tmp_path: Path) -> None:
    """Ids can be encoded, texts not, and what to do is said; what cannot be read is an error."""
    folder = tmp_path / "model"
    shutil.copytree(GOLDEN / "deberta_v3_like_h4", folder)
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer.model").write_bytes(b"pieces")
    encoder = pyenc.load(folder)
    assert encoder.model(torch.ones(1, 3, dtype=torch.long)).shape == (1, 3, 64)
    message = r"no tokenizer files.*SentencePiece model \(spiece.model, .*a tokenizer.json"
    with pytest.raises(CheckpointError, match=message):
        encoder.encode("the sky")
    (folder / "spm.model").write_bytes(b"pieces")
    with pytest.raises(CheckpointError, match=r"spm.model: not a readable SentencePiece model"):
        pyenc.load(folder)
    (folder / "vocab.json").write_text("{}")
    (folder / "merges.txt").write_text("")
    with pytest.raises(CheckpointError, match="DebertaV2Tokenizer cannot be made of it; expected"):
        pyenc.load(folder)
