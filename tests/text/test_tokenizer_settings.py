"""Settings that decide tokens: each is used or known to be harmless."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pyenc.errors import CheckpointError
from pyenc.text import TextTokenizer
from tests.conftest import GOLDEN
from tests.text.tokenizer_folders import (
    KINDS,
    TEXTS,
    as_transformers,
    bert,
    edit,
    ids,
    odd_texts,
    qwen2,
    without,
    xlm_roberta,
)

CHANGES: list[dict[str, Any]] = [
    {},
    {"do_lower_case": False},
    {"strip_accents": False},
    {"keep_accents": True},
    {"keep_accents": False, "do_lower_case": True},
    {"strip_accents": True, "do_lower_case": False},
    {"tokenize_chinese_chars": False},
    {"add_prefix_space": True},
    {"add_prefix_space": False},
    {"trim_offsets": False},
    {"split_special_tokens": True},
    {"truncation_side": "left"},
    {"cls_token": "[MASK]", "bos_token": "[MASK]"},
    {"additional_special_tokens": ["[NEW]"]},
    {"extra_special_tokens": ["[NEW]", "newtok"]},
    {"extra_special_tokens": {"new_token": "[NEW]"}},
    {"image_token": "[NEW]", "video_token": None, "use_auth_token": False},
    {"never_split": ["CAFÉ"], "do_basic_tokenize": False, "clean_text": False},
    {"fast_tokenizer_files": ["tokenizer.json"], "init_inputs": []},
    {"add_bos_token": True, "add_eos_token": True},
    {"trust_remote_code": True},
    {"trust_remote_code": False, "do_lower_case": False},
    {"tokenizer_class": "PreTrainedTokenizerFast"},
    {"tokenizer_class": "NameThatNobodyKnows"},
    {"tokenizer_class": "RetriBertTokenizer", "do_lower_case": False},
    {"full_tokenizer_file": None, "dtype": "float32"},
]


OBJECT = {"__type": "AddedToken", "content": "newtok"}


@pytest.mark.parametrize(
    ("config", "in_map"),
    [
        ({"a_token": "[NEW]", "b_token": OBJECT}, {}),
        ({"a_token": "[NEW]"}, {"b_token": "newtok"}),
        ({"a_token": "[NEW]"}, {"a_token": "newtok"}),
        ({"a_token": OBJECT}, {"a_token": "[NEW]"}),
        ({"extra_special_tokens": {"a_token": "[NEW]"}, "b_token": OBJECT}, {"c_token": "more"}),
    ],
)
def test_tokens_of_names_of_their_own(
    config: dict[str, Any], in_map: dict[str, Any], tmp_path: Path
) -> None:
    """In which order they get their ids, and which counts of two."""
    folder = bert(tmp_path / "b", **config)
    edit(folder / "tokenizer_config.json", lambda old: without(old, "added_tokens_decoder"))
    path = folder / "special_tokens_map.json"
    said = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(json.dumps(said | in_map))
    as_transformers(folder, [*TEXTS, "[NEW] newtok more", "newtok[NEW]"])


@pytest.mark.parametrize("named", [{}, {"pad_token": "<unk>"}], ids=str)
def test_llama_pads_with_a_token_of_its_file(named: dict[str, str], tmp_path: Path) -> None:
    """Which is a special one wherever it stands, unless a setting names another."""
    folder = KINDS["llama 2"](tmp_path / "l")
    edit(
        folder / "tokenizer_config.json",
        lambda old: without(without(old, "pad_token"), "added_tokens_decoder") | named,
    )
    padding = {
        "strategy": "BatchLongest", "direction": "Left", "pad_to_multiple_of": None,
        "pad_id": 5, "pad_type_id": 0, "pad_token": "quick",
    }  # fmt: skip
    edit(folder / "tokenizer.json", lambda old: old | {"padding": padding})
    special = TextTokenizer(folder)(["the quick"], 99)[0].ids.tolist()
    assert (384 in special) == (not named)
    as_transformers(folder, [*TEXTS, "the quick fox", "quickquick"])


@pytest.mark.parametrize("remote", [["t.A", "t.B"], {"AutoTokenizer": ["t.A", "t.B"]}], ids=str)
def test_remote_code_in_either_spelling(remote: Any, tmp_path: Path) -> None:
    said = {"tokenizer_class": "LlamaTokenizer", "auto_map": remote}
    as_transformers(KINDS["mistral"](tmp_path / "m", **said), TEXTS)
    with pytest.raises(CheckpointError, match="has rules of its own"):
        TextTokenizer(bert(tmp_path / "b", tokenizer_class="NobodyKnows", auto_map=remote))


def test_an_added_token_that_the_configuration_writes_as_an_object(tmp_path: Path) -> None:
    """Is none of transformers' special ones where added_tokens.json has it too."""
    token = {"__type": "AddedToken", "content": "[NEW]", "special": True}
    folder = bert(tmp_path / "b", mask_token=token)
    edit(folder / "tokenizer_config.json", lambda old: without(old, "added_tokens_decoder"))
    (folder / "special_tokens_map.json").unlink(missing_ok=True)
    (folder / "added_tokens.json").write_text('{"[NEW]": 126}')
    as_transformers(folder, [*TEXTS, "a [new] b", "a [NEW] b"])


@pytest.mark.parametrize("kind", KINDS)
def test_every_setting_as_transformers(kind: str, tmp_path: Path) -> None:
    for i, change in enumerate(CHANGES):
        as_transformers(KINDS[kind](tmp_path / str(i), **change), TEXTS)


@pytest.mark.parametrize(("end", "number"), [("</s>", 2), ("<pad>", 1), ("quick", 39)])
def test_t5_ends_as_declared(end: str, number: int, tmp_path: Path) -> None:
    folder = xlm_roberta(tmp_path, tokenizer_class="T5Tokenizer", eos_token=end, extra_ids=0)
    assert ids(folder, "the")[-1] == TextTokenizer(folder)._tokenizer.token_to_id(end) == number
    as_transformers(folder, ["the", "the ow"])


@pytest.mark.parametrize("token", ["[UNK]", "[CLS]", "[SEP]"])
def test_a_list_of_words_without_a_special_token(token: str, tmp_path: Path) -> None:
    """An id that is made up is not among the embeddings; padding and masks have a text none."""
    words = (GOLDEN / "bert_mean_h4" / "vocab.txt").read_text().splitlines()
    path = tmp_path / "vocab.txt"
    fewer = [word for word in words if word not in ("[PAD]", "[MASK]")]
    path.write_text("\n".join(fewer))
    assert ids(tmp_path, "the") == [fewer.index(word) for word in ("[CLS]", "the", "[SEP]")]
    path.write_text("\n".join(word for word in words if word != token))
    with pytest.raises(CheckpointError) as caught:
        TextTokenizer(tmp_path)
    assert str(caught.value) == f"{path}: special token {token!r} is missing"


def test_what_pads_by_the_file_is_special(tmp_path: Path) -> None:
    folder = KINDS["as it is"](tmp_path)
    padding = {
        "strategy": "BatchLongest", "direction": "Right", "pad_to_multiple_of": None,
        "pad_id": 39, "pad_type_id": 0, "pad_token": "quick",
    }  # fmt: skip
    edit(folder / "tokenizer.json", lambda whole: whole | {"padding": padding})
    edit(
        folder / "tokenizer_config.json",
        lambda old: {k: v for k, v in old.items() if k != "pad_token"},
    )
    as_transformers(folder, ["the quickquick fox"])


@pytest.mark.parametrize("kind", KINDS)
def test_odd_texts_as_transformers(kind: str, tmp_path: Path) -> None:
    as_transformers(KINDS[kind](tmp_path / kind), odd_texts(200, 12))


def test_the_normalizer_of_sentencepiece(tmp_path: Path) -> None:
    """Its table of characters is kept, whatever else the class builds anew."""
    for kind in ("xlm-roberta", "camembert", "t5"):
        folder = KINDS[kind](tmp_path / kind)
        assert ids(folder, "the Quick") == ids(folder, "the quick")
        as_transformers(folder, ["the Quick", "Q", "QQ\u0301", " Q  <mask> Q"])
        edit(folder / "tokenizer.json", lambda whole: whole | {"normalizer": None})
        assert ids(folder, "the Quick") != ids(folder, "the quick")
        as_transformers(folder, ["the Quick", "Q"])


def test_the_normalizer_that_debertas_class_leaves_out(tmp_path: Path) -> None:
    """It makes its own steps alone: SentencePiece's table goes, spaces are told apart from it."""
    folder = KINDS["deberta"](tmp_path)
    texts = ["the Quick", "Q", "the \n\r the\t the", " the ", "e\u0301", "a.b, c"]
    assert ids(folder, "the Quick") != ids(folder, "the quick")
    assert ids(folder, "the\n the ") == ids(folder, "the the")
    as_transformers(folder, texts)
    apart = KINDS["deberta"](tmp_path / "apart", split_by_punct=True, do_lower_case=True)
    assert ids(apart, "The Quick") == ids(folder, "the quick")
    assert ids(apart, "the.the") != ids(folder, "the.the")
    as_transformers(apart, texts)


def test_which_of_debertas_words_is_unknown(tmp_path: Path) -> None:
    """The one that is called so; where none of score 0 is, what `unk_id` says."""
    unknown = TextTokenizer(KINDS["deberta"](tmp_path / "plain"))._tokenizer.token_to_id("[UNK]")
    for told in ({}, {"unk_id": 5}):
        folder = KINDS["deberta"](tmp_path / str(len(told)), **told)
        assert ids(folder, "字")[-2] == unknown
        as_transformers(folder, ["字", "the 字", "字字 a"])

        def scored(whole: dict[str, Any]) -> dict[str, Any]:
            whole["model"]["vocab"][unknown][1] = -9.0
            return whole

        edit(folder / "tokenizer.json", scored)
        assert ids(folder, "字")[-2] == told.get("unk_id", 1)
        as_transformers(folder, ["字", "the 字", "字字 a"])
    with pytest.raises(CheckpointError, match="unk_id: expected int, got '3'"):
        TextTokenizer(KINDS["deberta"](tmp_path / "wrong", unk_id="3"))


def test_the_configuration_wins_for_bert(tmp_path: Path) -> None:
    """And the ids are literally these: the files' own words, whatever is installed."""
    vocab = (GOLDEN / "bert_mean_h4/vocab.txt").read_text("utf-8").split("\n")
    cased = bert(tmp_path / "cased", do_lower_case=False)
    unknown, the = vocab.index("[UNK]"), vocab.index("the")
    assert ids(cased, "The the")[1:-1] == [unknown, the]
    assert ids(bert(tmp_path / "lower"), "The the")[1:-1] == [the, the]
    whole = ids(bert(tmp_path / "whole", tokenize_chinese_chars=False), "你好")
    assert len(whole) == 3
    assert len(ids(bert(tmp_path / "apart"), "你好")) == 4
    as_is = bert(tmp_path / "fast", tokenizer_class="PreTrainedTokenizerFast", do_lower_case=False)
    assert ids(as_is, "The")[1:-1] == [the]


@pytest.mark.parametrize("kind", KINDS)
def test_the_file_as_it_is_where_code_is_trusted(kind: str, tmp_path: Path) -> None:
    folder = KINDS[kind](tmp_path, trust_remote_code=True, do_lower_case=False, sep_token="[NEW]")
    other = {"normalizer": {"type": "Lowercase"}, "post_processor": None}
    edit(folder / "tokenizer.json", lambda old: old | other)
    as_transformers(folder, TEXTS)


def test_no_post_processor(tmp_path: Path) -> None:
    """BERT's special tokens come with its class; tokenizer.json as it is, Gemma's, Llama's and
    Qwen's have what they say."""
    for kind in KINDS:
        folder = KINDS[kind](tmp_path / kind)
        edit(folder / "tokenizer.json", lambda whole: whole | {"post_processor": None})
        as_transformers(folder, TEXTS)
        right = {
            "albert": 2,
            "bert": 2,
            "camembert": 2,
            "deberta": 2,
            "mpnet": 2,
            "roberta": 2,
            "t5": 1,
            "xlm-roberta": 2,
        }
        assert TextTokenizer(folder).num_special == right.get(kind, 0)


@pytest.mark.parametrize("kind", ["bert", "roberta", "xlm-roberta"])
def test_the_oldest_files_do_not_say_their_model(kind: str, tmp_path: Path) -> None:
    folder = KINDS[kind](tmp_path)
    right = ids(folder, "the quick")
    edit(folder / "tokenizer.json", lambda old: old | {"model": without(old["model"], "type")})
    assert ids(folder, "the quick") == right
    as_transformers(folder, TEXTS)


def test_the_model_says_qwens_class(tmp_path: Path) -> None:
    """Of Qwen 2, whatever class its files name; of Qwen 3 the files do, as of others. What ends a
    text is what tokenizer.json says, whatever is said of `add_eos_token` beside it; without that
    file it is the other way round."""
    texts = [*TEXTS, "", "12345 it's", "e\u0301 <|endoftext|>"]
    for name in ("LlamaTokenizerFast", "PreTrainedTokenizerFast", "Qwen2TokenizerFast", "Unknown"):
        for kind in ("qwen2", "qwen3"):
            folder = qwen2(tmp_path / kind / name, tokenizer_class=name, add_eos_token=False)
            (folder / "config.json").write_text(json.dumps({"model_type": kind}))
            as_transformers(folder, texts)
            assert TextTokenizer(folder).num_special == 1
    remote = {"AutoTokenizer": ["tokenization_qwen.Other", None]}
    folder = qwen2(tmp_path / "remote", tokenizer_class="Other", auto_map=remote)
    (folder / "config.json").write_text(json.dumps({"model_type": "qwen2"}))
    with pytest.raises(CheckpointError, match="rules of its own, which are not served"):
        TextTokenizer(folder)
    for ends in (True, False):
        folder = qwen2(tmp_path / str(ends), add_eos_token=ends, eos_token="<|endoftext|>")
        model = json.loads((folder / "tokenizer.json").read_text())["model"]
        (folder / "vocab.json").write_text(json.dumps(model["vocab"]))
        (folder / "merges.txt").write_text("\n".join(" ".join(m) for m in model["merges"]))
        (folder / "tokenizer.json").unlink()
        as_transformers(folder, texts)
        assert TextTokenizer(folder).num_special == int(ends)


@pytest.mark.parametrize("name", ["tokenizer_config.json", "tokenizer.json"])
def test_left_out_files(name: str, tmp_path: Path) -> None:
    for kind in ("bert", "roberta", "xlm-roberta", "camembert", "t5"):
        folder = KINDS[kind](tmp_path / kind)
        (folder / name).unlink()
        if name == "tokenizer_config.json" or kind == "bert":
            as_transformers(folder, TEXTS)


@pytest.mark.parametrize("entry", ["\u2028", "\x85", "a\x0bb", "\x0c", "the", "", "\x1c", "qu "])
def test_word_lists_are_cut_at_newlines_alone(entry: str, tmp_path: Path) -> None:
    """An entry that str.splitlines would cut shifts no id after it."""
    words = (GOLDEN / "bert_mean_h4/vocab.txt").read_text("utf-8").split("\n")
    before = ids(GOLDEN / "bert_mean_h4", "fox.")[1:-1]
    for end in ("\n", "\r\n"):
        folder = bert(tmp_path / str(len(end)))
        (folder / "tokenizer.json").unlink()
        at = words.index("[MASK]") + 1
        text = end.join([*words[:at], entry, *words[at:]]) + end
        (folder / "vocab.txt").write_bytes(text.encode())
        assert ids(folder, "fox.")[1:-1] == [i + 1 for i in before]
        as_transformers(folder, TEXTS)
