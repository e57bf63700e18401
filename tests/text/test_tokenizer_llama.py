"""Llama's and Mistral's tokenizers: which rules are whose, and files that contradict each other."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest

import pyenc
from pyenc.errors import CheckpointError
from pyenc.loading import own_checkpoint
from pyenc.text import TextTokenizer
from tests.conftest import GOLDEN
from tests.loading.test_strict import copied
from tests.text.tokenizer_folders import around, as_transformers, edit, llama2, llama3, mistral

TEXTS = ["a fox", "", " two  words", "</s>ab</s> c", "▁the\n", "日本語 \x00 é", "<s>", "x<0x41>"]
BEGIN, END = 1, 2


def ids(folder: Path, text: str = "a") -> list[int]:
    return TextTokenizer(folder)([text], 999)[0].ids.tolist()


@pytest.mark.parametrize("space", [None, True, False])
@pytest.mark.parametrize("legacy", [None, True, False, ...])
@pytest.mark.parametrize("name", ["LlamaTokenizer", "LlamaTokenizerFast"])
def test_the_class(name: str, legacy: Any, space: Any, tmp_path: Path) -> None:
    """Its rules, whoever has it: the first word's space goes by `add_prefix_space` and `legacy`."""
    said = {"tokenizer_class": name, "add_prefix_space": space, "legacy": legacy}
    for kind in ("llama", "qwen3", "bert"):
        folder = llama2(tmp_path / kind, **{k: v for k, v in said.items() if v is not ...})
        if legacy is ...:
            edit(folder / "tokenizer_config.json", lambda c: {k: c[k] for k in c if k != "legacy"})
        (folder / "config.json").write_text(json.dumps({"model_type": kind}))
        as_transformers(folder, TEXTS)
        assert TextTokenizer(folder).class_name == "LlamaTokenizer"


def test_legacy_is_seen(tmp_path: Path) -> None:
    """After a special token inside of a text; and without a first space every text begins
    otherwise."""
    said: list[dict[str, Any]] = [{"legacy": True}, {"legacy": False}, {"add_prefix_space": False}]
    found = [ids(llama2(tmp_path / str(i), **one), "a</s>b") for i, one in enumerate(said)]
    assert found[0] != found[1]
    assert found[1][1] != found[2][1]


def test_mistral_is_taken_as_it_is(tmp_path: Path) -> None:
    """Whatever class of transformers' its files name; code of its own is passed over, and the class
    counts then."""
    remote = {"AutoTokenizer": ["tokenization_x.Other", None]}
    for name in ("LlamaTokenizer", "GPT2TokenizerFast", "BertTokenizer", "Unknown", None):
        folder = mistral(tmp_path / str(name), tokenizer_class=name)
        as_transformers(folder, TEXTS)
        assert TextTokenizer(folder).class_name == "PreTrainedTokenizerFast"
    folder = mistral(tmp_path / "remote", auto_map=remote)
    as_transformers(folder, TEXTS)
    assert TextTokenizer(folder).class_name == "LlamaTokenizer"
    folder = mistral(tmp_path / "other", tokenizer_class="Other", auto_map=remote)
    with pytest.raises(CheckpointError, match="rules of its own, which are not served"):
        TextTokenizer(folder)


def test_llama_3_under_the_class_of_before_it(tmp_path: Path) -> None:
    """Bytes written as characters: tokenizer.json as it is, there and here."""
    for kind in ("llama", "eurobert"):
        folder = llama3(tmp_path / kind, tokenizer_class="LlamaTokenizerFast")
        (folder / "config.json").write_text(json.dumps({"model_type": kind}))
        as_transformers(folder, TEXTS)
        assert TextTokenizer(folder).class_name == "PreTrainedTokenizerFast"


def test_llama_is_made_of_one_file(tmp_path: Path) -> None:
    folder = llama2(tmp_path)
    model = json.loads((folder / "tokenizer.json").read_text())["model"]
    (folder / "vocab.json").write_text(json.dumps(model["vocab"]))
    (folder / "merges.txt").write_text("\n".join(" ".join(m) for m in model["merges"]))
    (folder / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match="LlamaTokenizer cannot be made of it; expected tok"):
        TextTokenizer(folder)


ENDS = ("$A", "<s> $A", "$A </s>", "<s> $A </s>")


@pytest.mark.parametrize("single", ENDS)
@pytest.mark.parametrize("kind", [llama2, mistral])
def test_what_is_around_a_text(kind: Any, single: str, tmp_path: Path) -> None:
    """By tokenizer_config.json, where it says it: so these models were trained."""
    for begins in (True, False, None):
        for ends in (True, False, None):
            folder = kind(tmp_path / f"{begins}{ends}", add_bos_token=begins, add_eos_token=ends)
            around(folder, single)
            first = "<s>" in single if begins is None else begins
            last = "</s>" in single if ends is None else ends
            got, tokenizer = ids(folder), TextTokenizer(folder)
            assert (got[0] == BEGIN, got[-1] == END) == (first, last)
            assert tokenizer.num_special == first + last
            agree = (first, last) == ("<s>" in single, "</s>" in single)
            assert bool(tokenizer.disputed) != agree
            if agree:
                as_transformers(folder, TEXTS)
            cut = tokenizer(["word " * 90, "a"], 5)[0].ids.tolist()
            assert (len(cut), cut[0] == BEGIN, cut[-1] == END) == (5, first, last)


def test_as_transformers_4(tmp_path: Path) -> None:
    """transformers 5 does the same where it is told both settings."""
    transformers = pytest.importorskip("transformers", minversion="5")
    folder = mistral(tmp_path, add_bos_token=True, add_eos_token=True)
    around(folder, "<s> $A")
    plain = transformers.AutoTokenizer.from_pretrained(folder)
    told = transformers.AutoTokenizer.from_pretrained(
        folder, add_bos_token=True, add_eos_token=True
    )
    for text in TEXTS:
        assert plain(text)["input_ids"] != told(text)["input_ids"] == ids(folder, text)


def test_other_tokens_around_a_text(tmp_path: Path) -> None:
    """A special token at an end is not yet the one that belongs there."""
    for said, right in (({"add_bos_token": True}, [BEGIN]), ({"add_eos_token": True}, [END])):
        folder = mistral(tmp_path / str(right), **said)
        around(folder, "$A")
        word = ids(folder)[1:] if right == [BEGIN] else ids(folder)[:-1]
        around(folder, "</s> $A <s>")
        assert ids(folder) == (right + word if right == [BEGIN] else word + right)
        assert TextTokenizer(folder).disputed


def test_tokenizer_args_come_before_both(tmp_path: Path) -> None:
    """What they leave out is not added, whatever tokenizer_config.json says, as in transformers."""
    transformers = pytest.importorskip("transformers", minversion="5")
    folder = mistral(tmp_path, add_bos_token=True, add_eos_token=True)
    around(folder, "<s> $A")
    for told in ({"add_eos_token": True}, {"add_bos_token": True}, {"add_eos_token": False}):
        theirs = transformers.AutoTokenizer.from_pretrained(folder, **told)
        ours = TextTokenizer(folder, overrides=told)
        assert ours(["a fox"], 99)[0].ids.tolist() == theirs("a fox")["input_ids"]
        assert not ours.disputed


@pytest.mark.parametrize("name", ["PreTrainedTokenizerFast", "GPT2Tokenizer"])
def test_another_class_is_told_by_tokenizer_json_alone(name: str, tmp_path: Path) -> None:
    """transformers 4 took these settings from Llama's class."""
    for kind in (llama2, mistral):
        folder = kind(tmp_path / kind.__name__, add_eos_token=True, tokenizer_class=name)
        around(folder, "<s> $A")
        as_transformers(folder, TEXTS)
        assert not TextTokenizer(folder).disputed


def test_a_token_that_there_is_none_of(tmp_path: Path) -> None:
    folder = mistral(tmp_path, add_eos_token=True, eos_token=None)
    around(folder, "<s> $A")
    with pytest.raises(CheckpointError, match="add_eos_token: true, but eos_token is None"):
        TextTokenizer(folder)


def test_the_contradiction_is_said_once(tmp_path: Path) -> None:
    """At load; vectors are those of files that agree, also saved, and the words are not lent."""
    plain = pyenc.load(GOLDEN / "mistral_e5_like_h4").encode(TEXTS)
    folder = copied("mistral_e5_like_h4", tmp_path)
    around(folder, "<s> $A")
    told = "tokenizer_config.json says add_eos_token true, and tokenizer.json otherwise"
    with pytest.warns(pyenc.AssumptionWarning, match=told) as caught:
        encoder = pyenc.load(folder)
    assert len(caught) == 1
    assert (encoder.encode(TEXTS) == plain).all()
    encoder.save(tmp_path / "saved")
    with pytest.warns(pyenc.AssumptionWarning, match=told):
        assert (pyenc.load(tmp_path / "saved").encode(TEXTS) == plain).all()
    with pytest.raises(CheckpointError, match=r"cannot be borrowed: .*add_eos_token"):
        pyenc.load(GOLDEN / "mistral_e5_like_h4", tokenizer=folder)
    edit(folder / "tokenizer_config.json", lambda old: old | {"add_eos_token": False})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert (pyenc.load(folder).encode(TEXTS) != plain).any(1).all()


@pytest.mark.parametrize("single", ["<s> $A </s>", "<s> $A"])
@pytest.mark.parametrize("name", ["mistral_e5_like_h4", "llama_encoder_like_h6"])
def test_saved_with_an_encoder_of_our_own_format(name: str, single: str, tmp_path: Path) -> None:
    """Whose `config.json` says nothing of the rules; the files agree from then on."""
    folder = copied(name, tmp_path)
    around(folder, single)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", pyenc.AssumptionWarning)
        encoder = pyenc.load(folder)
    plain = encoder.encode(TEXTS)
    encoder.checkpoint = own_checkpoint(encoder.model)
    encoder.save(tmp_path / "saved")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = pyenc.load(tmp_path / "saved")
    assert (again.encode(TEXTS) == plain).all()
    again.save(tmp_path / "twice")
    for file in ("tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / "twice" / file).read_bytes() == (tmp_path / "saved" / file).read_bytes()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("llama_encoder_like_h6", "are read by the rules of Qwen2Tokenizer, and here by those of "),
        ("bert_mean_h4", "are not read: tokenizer.json: model.type 'WordPiece'"),
    ],
)
def test_words_that_cannot_be_saved(words: str, told: str) -> None:
    """Of this model_type one class alone is read."""
    told = f"cannot be borrowed: beside a config.json of model_type 'qwen2', .* they {told}"
    with pytest.raises(CheckpointError, match=told):
        pyenc.load(GOLDEN / "qwen2_code_like_h6", tokenizer=GOLDEN / words)


@pytest.mark.parametrize("words", ["llama_encoder_like_h6", "albert_small_like_h4", "bert_mean_h4"])
def test_borrowed_where_files_are_taken_as_they_are(words: str, tmp_path: Path) -> None:
    """By other rules than the words have: what is saved is the tokenizer as it was made."""
    encoder = pyenc.load(GOLDEN / "mistral_e5_like_h4", tokenizer=GOLDEN / words)
    encoder.save(tmp_path)
    again = pyenc.load(tmp_path)
    assert encoder.tokenizer is not None
    assert again.tokenizer is not None
    assert again.tokenizer.class_name == "PreTrainedTokenizerFast"
    for ours, right in zip(again.tokenizer(TEXTS, 99), encoder.tokenizer(TEXTS, 99), strict=True):
        assert ours.ids.tolist() == right.ids.tolist()


def test_words_in_the_place_of_the_files(tmp_path: Path) -> None:
    """transformers puts its own there for large vocabularies of Mistral's, where it is asked to."""
    folder = mistral(tmp_path, fix_mistral_regex=True)
    as_transformers(folder, TEXTS)
    whole = json.loads((folder / "tokenizer.json").read_text("utf-8"))
    whole["model"]["vocab"] |= {f"<{number}>": number for number in range(384, 100_001)}
    (folder / "tokenizer.json").write_text(json.dumps(whole))
    with pytest.raises(CheckpointError, match="fix_mistral_regex: true: other words than tokenize"):
        TextTokenizer(folder)
    for change, file in (
        ({"fix_mistral_regex": False}, "tokenizer_config.json"),
        ({"model_type": "llama"}, "config.json"),
    ):
        before = (folder / file).read_text()
        edit(folder / file, lambda old, change=change: old | change)  # type: ignore[misc]
        assert TextTokenizer(folder).vocab_size == 100_001
        (folder / file).write_text(before)
