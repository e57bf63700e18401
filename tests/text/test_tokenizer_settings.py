"""Settings that decide tokens: each is used, known to be harmless, or refused with file and key."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pyenc.errors import CheckpointError
from pyenc.loading.hub import SMALL_FILES
from pyenc.text import TextTokenizer
from tests.conftest import GOLDEN
from tests.text.tokenizer_folders import (
    KINDS,
    as_transformers,
    bert,
    camembert,
    edit,
    odd_texts,
    qwen2,
    t5,
    xlm_roberta,
)

TEXTS = [
    "The quick, Brown fox!", "", "naïve CAFÉ 你好 newtok [NEW]", "a\u2028b\x85c\x0bd\x0ce\x00f",
    "[SEP] stays <mask> one </s> token [MASK]", " lead  and trail \n",
]  # fmt: skip
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
    {"tokenizer_class": "PreTrainedTokenizerFast"},
    {"tokenizer_class": "NameThatNobodyKnows"},
]


def ids(folder: Path, text: str) -> list[int]:
    return TextTokenizer(folder)([text], 999)[0].ids.tolist()


@pytest.mark.parametrize("kind", KINDS)
def test_every_setting_as_transformers(kind: str, tmp_path: Path) -> None:
    for i, change in enumerate(CHANGES):
        as_transformers(KINDS[kind](tmp_path / str(i), **change), TEXTS)


@pytest.mark.parametrize("kind", ["bert", "roberta", "xlm-roberta"])
def test_what_makes_an_object_a_token(kind: str, tmp_path: Path) -> None:
    """In tokenizer_config.json it must say that it is one; in special_tokens_map.json all are."""
    token = {"content": "hello", "lstrip": False, "normalized": False}
    said = token | {"__type": "AddedToken"}
    plain = KINDS[kind](tmp_path / "plain")
    bare = KINDS[kind](tmp_path / "bare", custom_token=token)
    named = KINDS[kind](tmp_path / "named", custom_token=said)
    mapped = KINDS[kind](tmp_path / "mapped")
    edit(mapped / "tokenizer_config.json", lambda c: without(c, "added_tokens_decoder"))
    (mapped / "special_tokens_map.json").write_text(json.dumps({"custom_token": token}))
    assert ids(bare, "a hello b") == ids(plain, "a hello b")
    size = TextTokenizer(plain).vocab_size
    for folder in (named, mapped):
        assert ids(folder, "a hello b").count(size) == 1
    for folder in (bare, named, mapped):
        as_transformers(folder, ["a hello b"])


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


def without(config: dict[str, Any], key: str) -> dict[str, Any]:
    return {k: v for k, v in config.items() if k != key}


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


IN_CONFIG, IN_MAP = "tokenizer_config.json", "special_tokens_map.json"


def listed(folder: Path, where: str, tokens: Any) -> Path:
    """A folder whose `additional_special_tokens` are in one of the two files."""
    path = folder / where
    old = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(old | {"additional_special_tokens": tokens}))
    return folder


@pytest.mark.parametrize("where", [IN_CONFIG, IN_MAP])
@pytest.mark.parametrize(
    ("count", "tokens"),
    [
        (3, ["[NEW]"]),
        (2, ["<extra_id_7>", "[NEW]", "<extra_id_0>"]),
        (0, ["<extra_id_7>"]),
        (0, ["[NEW]"]),
        (3, []),
        (3, None),
    ],
)
def test_t5_sentinels(where: str, count: int, tokens: Any, tmp_path: Path) -> None:
    texts = [
        "the<extra_id_0>ow [NEW]",
        "<extra_id_2> <extra_id_3>",
        "<extra_id_7><extra_id_99> <extra_id_100><extra_id_1>",
    ]
    as_transformers(t5(tmp_path / "plain"), texts)
    as_transformers(t5(tmp_path / "counted", extra_ids=count), texts)
    as_transformers(listed(t5(tmp_path / "listed", extra_ids=count), where, tokens), texts)


def test_t5_sentinels_that_are_miscounted(tmp_path: Path) -> None:
    """As transformers refuses them, in the file where it does."""
    folder = listed(t5(tmp_path, extra_ids=3), IN_MAP, ["<extra_id_0>", "<extra_id_1>"])
    with pytest.raises(CheckpointError, match="extra_ids: 3, but 2 of them are listed"):
        TextTokenizer(folder)


@pytest.mark.parametrize("where", [IN_CONFIG, IN_MAP])
@pytest.mark.parametrize("tokens", [["[NEW]"], [], None])
def test_what_camembert_does_not_use(where: str, tokens: Any, tmp_path: Path) -> None:
    """Words of fairseq's, which its class takes for special tokens unless told of others."""
    texts = ["a<s>NOTUSED b", "a</s>NOTUSED", "<unk>NOTUSED b", "[NEW] <mask> a"]
    as_transformers(camembert(tmp_path / "plain"), texts)
    as_transformers(listed(camembert(tmp_path / "listed"), where, tokens), texts)


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


def test_files_beside(tmp_path: Path) -> None:
    """Added tokens, the special tokens' map, a side to cut in tokenizer.json, chat templates."""
    size = TextTokenizer(GOLDEN / "bert_mean_h4").vocab_size
    added = bert(tmp_path / "added")
    (added / "added_tokens.json").write_text(json.dumps({"newtok": size}))
    (added / "chat_template.jinja").write_text("{{ messages }}")
    as_transformers(added, TEXTS)
    assert ids(added, "newtok")[1:-1] == [size]
    mapped = bert(tmp_path / "map")
    (mapped / "special_tokens_map.json").write_text('{"additional_special_tokens": ["[NEW]"]}')
    as_transformers(mapped, TEXTS)
    assert ids(mapped, "[NEW]")[1:-1] == [size]
    left = bert(tmp_path / "left")
    cut = {"direction": "Left", "max_length": 9, "strategy": "LongestFirst", "stride": 0}
    edit(left / "tokenizer.json", lambda whole: whole | {"truncation": cut})
    as_transformers(left, TEXTS)
    assert TextTokenizer(left).truncation_side == "left"
    assert {"added_tokens.json", "chat_template.jinja"} <= set(SMALL_FILES)


@pytest.mark.parametrize("kind", ["bert", "roberta", "xlm-roberta"])
def test_the_oldest_files_do_not_say_their_model(kind: str, tmp_path: Path) -> None:
    folder = KINDS[kind](tmp_path)
    right = ids(folder, "the quick")
    edit(folder / "tokenizer.json", lambda old: old | {"model": without(old["model"], "type")})
    assert ids(folder, "the quick") == right
    as_transformers(folder, TEXTS)


def test_what_the_map_says_of_added_tokens(tmp_path: Path) -> None:
    """Those of added_tokens.json that are named as special are found as they are written, others
    in any case; what the map names is special, whatever its object says."""
    size = TextTokenizer(GOLDEN / "bert_mean_h4").vocab_size
    texts = [*TEXTS, "NEWTOK newtok [NEW] [new] hello Hello"]
    split = {"split_special_tokens": True}
    for i, (mapped, config) in enumerate([
        ({"extra_special_tokens": ["[NEW]"]}, {}),
        ({"extra_special_tokens": {"new_token": "[NEW]"}}, {}),
        ({"extra_special_tokens": ["[NEW]"]}, split),
        ({"pad_token": "[NEW]", "custom_token": {"content": "Hello", "special": False}}, {}),
        ({"custom_token": {"content": "Hello", "special": False}}, split),
    ]):  # fmt: skip
        folder = bert(tmp_path / str(i), **config)
        edit(folder / "tokenizer_config.json", lambda c: without(c, "added_tokens_decoder"))
        (folder / "special_tokens_map.json").write_text(json.dumps(mapped))
        (folder / "added_tokens.json").write_text(json.dumps({"newtok": size, "[NEW]": size + 1}))
        as_transformers(folder, texts)
    assert ids(tmp_path / "0", "NEWTOK [NEW]")[1:-1] == [size, size + 1]
    assert size + 1 not in ids(tmp_path / "0", "[new]")
    assert size + 1 not in ids(tmp_path / "2", "[NEW]")
    assert ids(tmp_path / "3", "hello Hello").count(size + 2) == 1
    assert size + 2 not in ids(tmp_path / "4", "Hello")


def test_a_list_of_tokens_that_is_none_is_refused_beside_the_maps(tmp_path: Path) -> None:
    folder = bert(tmp_path, extra_special_tokens="ab")
    edit(folder / "tokenizer_config.json", lambda c: without(c, "added_tokens_decoder"))
    (folder / "special_tokens_map.json").write_text('{"extra_special_tokens": ["[NEW]"]}')
    message = r"tokenizer_config\.json: extra_special_tokens: expected a list of tokens, got 'ab'"
    with pytest.raises(CheckpointError, match=message):
        TextTokenizer(folder)


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


def test_gemma_is_made_of_one_file(tmp_path: Path) -> None:
    """Its class knows no lists: transformers would go on with a vocabulary of five tokens."""
    folder = KINDS["gemma"](tmp_path)
    (folder / "vocab.json").write_text('{"<unk>": 0}')
    (folder / "merges.txt").write_text("")
    (folder / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match="GemmaTokenizer cannot be made of it; expected tok"):
        TextTokenizer(folder)


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


@pytest.mark.parametrize(
    ("file", "values", "message"),
    [
        ("tokenizer_config.json", {"my_normalizer": 1}, "my_normalizer: an unknown setting"),
        ("tokenizer_config.json", {"do_lower_case": "yes"}, "do_lower_case: expected bool"),
        ("tokenizer_config.json", {"truncation_side": "up"}, 'truncation_side: expected "left"'),
        ("tokenizer_config.json", {"model_max_length": "9"}, "model_max_length: expected a pos"),
        ("tokenizer_config.json", {"tokenizer_class": 3}, "tokenizer_class: expected a name"),
        ("tokenizer_config.json", {"tokenizer_class": "BertJapaneseTokenizer"}, "rules of its own"),
        ("tokenizer_config.json", {"tokenizer_class": "RobertaTokenizer"}, "wants BPE"),
        ("tokenizer_config.json", {"cls_token": None}, "cls_token: null, but BertTokenizer needs"),
        ("tokenizer_config.json", {"cls_token": 3}, "cls_token: expected a token, got 3"),
        ("tokenizer_config.json", {"fast_tokenizer_files": ["a.json"]}, "fast_tokenizer_files"),
        ("tokenizer_config.json", {"init_inputs": ["a"]}, "init_inputs: not served: ['a']"),
        ("tokenizer_config.json", {"image_token": 3}, "image_token: expected a token, got 3"),
        ("tokenizer_config.json", {"extra_special_tokens": "x"}, "expected a list of tokens"),
        (
            "tokenizer_config.json",
            {"additional_special_tokens": "x"},
            "additional_special_tokens: expected a list of tokens, got 'x'",
        ),
        (
            "tokenizer_config.json",
            {"additional_special_tokens": [3]},
            "additional_special_tokens: expected a token, got 3",
        ),
        ("special_tokens_map.json", {"extra_special_tokens": [3]}, "extra_special_tokens: expec"),
        ("special_tokens_map.json", {"additional_special_tokens": [3]}, "tokens: expected a token"),
        ("special_tokens_map.json", {"additional_special_tokens": 3}, "expected a list of tokens"),
        (
            "tokenizer_config.json",
            {"mask_token": {"content": "[MASK]", "lstrip": 1}},
            "mask_token: expected a token with true or false",
        ),
        ("tokenizer_config.json", {"added_tokens_decoder": [1]}, "decoder: expected an object"),
        ("tokenizer_config.json", {"added_tokens_decoder": {"a": {}}}, "expected tokens by id"),
        ("tokenizer_config.json", {"added_tokens_decoder": {"1": "x"}}, "by id, got '1': 'x'"),
        (
            "tokenizer_config.json",
            {"added_tokens_decoder": {"9999": {"content": "newtok"}}},
            "'newtok' is said to be 9999",
        ),
        ("special_tokens_map.json", {"do_lower_case": False}, "do_lower_case: not a special token"),
        ("special_tokens_map.json", {"add_bos_token": True}, "add_bos_token: not a special token"),
        ("added_tokens.json", {"newtok": 9999}, "'newtok' is said to be 9999"),
        ("added_tokens.json", {"newtok": "1"}, "'newtok': expected an id"),
        ("tokenizer.json", {"lowercase": True}, "lowercase: an unknown setting; known: version"),
        ("tokenizer.json", {"version": "2.0"}, "version '2.0' is not served; expected '1.0'"),
    ],
)
def test_refused_with_file_and_key(
    file: str, values: dict[str, Any], message: str, tmp_path: Path
) -> None:
    folder = bert(tmp_path)
    if file != "special_tokens_map.json":
        (folder / "special_tokens_map.json").unlink()  # it wins over the configuration
    path = folder / file
    path.write_text(json.dumps((json.loads(path.read_text()) if path.exists() else {}) | values))
    with pytest.raises(CheckpointError) as caught:
        TextTokenizer(folder)
    assert message in str(caught.value)
    if "RobertaTokenizer" not in str(values):
        assert file in str(caught.value)


def test_tokens_by_chance_are_refused(tmp_path: Path) -> None:
    folder = KINDS["roberta"](tmp_path, tokenizer_class="PreTrainedTokenizerFast")
    edit(
        folder / "tokenizer.json",
        lambda whole: whole | {"model": whole["model"] | {"dropout": 0.1}},
    )
    with pytest.raises(CheckpointError, match=r"model\.dropout"):
        TextTokenizer(folder)
