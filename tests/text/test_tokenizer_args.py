"""`tokenizer_args`: what another file puts over tokenizer_config.json, as transformers has it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pyenc.errors import CheckpointError
from pyenc.text import TextTokenizer
from tests.text.tokenizer_folders import KINDS, TEXTS, bert, edit, ids, without


@pytest.mark.parametrize("kind", KINDS)
def test_what_tokenizer_args_put_around_a_text(kind: str, tmp_path: Path) -> None:
    """Before tokenizer.json, and what they leave out is not added, as transformers has it."""
    transformers = pytest.importorskip("transformers", minversion="5")
    both = {"add_bos_token": True, "add_eos_token": True}
    folder = KINDS[kind](tmp_path)
    seen = set()
    ends: list[dict[str, Any]] = [{"add_eos_token": True}, {"add_eos_token": False}]
    for told in ({}, both, *ends, {"add_bos_token": True}, {"add_bos_token": None}):
        theirs = transformers.AutoTokenizer.from_pretrained(folder, **told)
        got = TextTokenizer(folder, overrides=told)(TEXTS, 999)
        assert [tokens.ids.tolist() for tokens in got] == theirs(TEXTS)["input_ids"]
        seen.add(tuple(got[0].ids.tolist()))
    own = kind in ("bert", "camembert", "deberta", "mpnet", "roberta", "t5", "xlm-roberta")
    assert (len(seen) == 1) == own


TOLD: list[dict[str, Any]] = [
    {"tokenizer_class": "PreTrainedTokenizerFast"},
    {"tokenizer_class": "BertTokenizer"},
    {"tokenizer_class": "RobertaTokenizer"},
    {"auto_map": {"AutoTokenizer": ["their.Words", None]}},
    {"cls_token": "quick", "sep_token": "hello"},
    {"mask_token": "hello"},
    {"pad_token": "fox"},
    {"extra_special_tokens": ["hello"]},
]
"""What another file may put over tokenizer_config.json: classes, which are passed over, and tokens,
also over those of special_tokens_map.json."""


@pytest.mark.parametrize("kind", KINDS)
def test_what_tokenizer_args_name(kind: str, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", minversion="5")
    folder = KINDS[kind](tmp_path)
    texts = [*TEXTS, "a hello fox, quick <mask>"]
    for told in TOLD:
        if kind == "albert" and "cls_token" in told:
            continue  # whose class takes these from the vocabulary alone, and fails in both
        theirs = transformers.AutoTokenizer.from_pretrained(folder, **told)
        got = TextTokenizer(folder, overrides=told)(texts, 999)
        assert [tokens.ids.tolist() for tokens in got] == theirs(texts)["input_ids"], told


def test_tokens_that_tokenizer_args_name_are_used(tmp_path: Path) -> None:
    """Also without transformers: over special_tokens_map.json, and under the class of the files."""
    folder = bert(tmp_path)
    edit(folder / "tokenizer_config.json", lambda c: without(c, "added_tokens_decoder"))
    (folder / "special_tokens_map.json").write_text(json.dumps({"cls_token": "[CLS]"}))
    told = {"cls_token": "hello", "tokenizer_class": "RobertaTokenizer"}
    words = TextTokenizer(folder, overrides=told)
    assert words.class_name == "BertTokenizer"
    (tokens,) = words(["a"], 9)
    assert tokens.ids[0] == words.vocab_size - 1


def test_what_is_wrong_in_tokenizer_args_is_said_of_their_file(tmp_path: Path) -> None:
    """Also where special_tokens_map.json names the token too, which is not the one that counts."""
    folder = bert(tmp_path)
    edit(folder / "tokenizer_config.json", lambda c: without(c, "added_tokens_decoder"))
    (folder / "special_tokens_map.json").write_text(json.dumps({"pad_token": "[PAD]"}))
    message = r"sentence_bert_config\.json: pad_token: expected a token, got 3"
    with pytest.raises(CheckpointError, match=message):
        TextTokenizer(folder, overrides={"pad_token": 3})


@pytest.mark.parametrize(
    ("told", "message"),
    [
        ({"tokenizer_type": "roberta"}, "tokenizer_type: 'roberta' asks for the rules of another"),
        ({"tokenizer_file": "b.json"}, "tokenizer_file: 'b.json' asks for another tokenizer.json"),
    ],
)
def test_what_tokenizer_args_cannot_ask_for(
    told: dict[str, Any], message: str, tmp_path: Path
) -> None:
    """In tokenizer_config.json the same keys say where it came from."""
    folder = bert(tmp_path / "told")
    with pytest.raises(CheckpointError, match=rf"sentence_bert_config.json: {message}"):
        TextTokenizer(folder, overrides=told)
    TextTokenizer(folder, overrides=dict.fromkeys(told))
    said = bert(tmp_path / "said", **told)
    assert ids(said, "the") == ids(folder, "the")
