"""Tokens that files beside tokenizer.json add or name as special: used as transformers does."""

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
    TEXTS,
    as_transformers,
    bert,
    camembert,
    edit,
    ids,
    qwen2,
    t5,
    without,
)


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


@pytest.mark.parametrize("kind", ["bert", "xlm-roberta", "as it is"])
def test_the_names_that_transformers_5_writes_twice(kind: str, tmp_path: Path) -> None:
    """Each under its own name and all of them in one object, which is read where none is a string
    of its own name."""
    texts = ["a hello b[NEW] the", "a Hello"]
    spaced = {"__type": "AddedToken", "content": "hello", "rstrip": True, "normalized": False}
    size = TextTokenizer(KINDS[kind](tmp_path / "plain")).vocab_size
    for i, (config, found) in enumerate([
        ({"image_token": "[NEW]"}, ["[NEW]"]),
        ({}, ["hello"]),
        ({"image_token": spaced}, ["hello"]),
        ({"extra_special_tokens": {}}, ["hello"]),
        ({"extra_special_tokens": {"image_token": "[NEW]"}}, ["[NEW]"]),
    ]):  # fmt: skip
        config = {"model_specific_special_tokens": {"other_token": spaced}} | config
        folder = KINDS[kind](tmp_path / str(i), **config)
        made = TextTokenizer(folder)._tokenizer
        assert [made.id_to_token(n) for n in range(size, made.get_vocab_size())] == found
        as_transformers(folder, texts)
    for i, nothing in enumerate((None, {})):
        folder = KINDS[kind](tmp_path / f"{i} no", model_specific_special_tokens=nothing)
        assert TextTokenizer(folder).vocab_size == size
    folder = KINDS[kind](tmp_path / "wrong", model_specific_special_tokens=["[NEW]"])
    message = r"config\.json: model_specific_special_tokens: expected tokens by name, got \['\[NEW"
    with pytest.raises(CheckpointError, match=message):
        TextTokenizer(folder)


def test_qwens_class_takes_no_space_beside_a_special_token(tmp_path: Path) -> None:
    """It makes them again of their texts, whatever the files say of spaces and normalising."""
    token = {"__type": "AddedToken", "content": "[NEW]", "rstrip": True, "special": True}
    plain = qwen2(tmp_path / "plain", additional_special_tokens=["[NEW]"])
    spaced = qwen2(tmp_path / "spaced", additional_special_tokens=[token])
    named = qwen2(tmp_path / "named", mask_token=token | {"lstrip": True}, image_token=token)
    assert ids(plain, "a [NEW] b") == ids(spaced, "a [NEW] b") == ids(named, "a [NEW] b")
    for folder in (plain, spaced, named):
        as_transformers(folder, ["a [NEW] b", "[NEW][NEW]  "])


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
