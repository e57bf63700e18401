"""Settings of tokenizers that are refused, with file and key."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pyenc.errors import CheckpointError
from pyenc.text import TextTokenizer
from tests.text.tokenizer_folders import KINDS, bert, edit


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
        ("tokenizer_config.json", {"sep_token": ""}, "sep_token: empty, which is not served"),
        (
            "tokenizer_config.json",
            {"tokenizer_class": "DPRContextEncoderTokenizerFast"},
            "'DPRContextEncoderTokenizerFast' has rules of its own",
        ),
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
        (
            "tokenizer.json",
            {"truncation": True},
            "truncation: expected an object or null",
        ),
        (
            "tokenizer.json",
            {"truncation": {"direction": "up", "max_length": 9}},
            'truncation.direction: expected "Left" or "Right", got \'up\'',
        ),
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


def test_gemma_is_made_of_one_file(tmp_path: Path) -> None:
    """Its class knows no lists: transformers would go on with a vocabulary of five tokens."""
    folder = KINDS["gemma"](tmp_path)
    (folder / "vocab.json").write_text('{"<unk>": 0}')
    (folder / "merges.txt").write_text("")
    (folder / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match="GemmaTokenizer cannot be made of it; expected tok"):
        TextTokenizer(folder)


def test_a_token_around_a_text_that_there_is_none_of(tmp_path: Path) -> None:
    """Of lists of words and merges, where these settings are what puts one there."""
    folder = KINDS["qwen 2"](tmp_path, add_bos_token=True, bos_token=None)
    model = json.loads((folder / "tokenizer.json").read_text())["model"]
    (folder / "vocab.json").write_text(json.dumps(model["vocab"]))
    (folder / "merges.txt").write_text("\n".join(" ".join(m) for m in model["merges"]))
    (folder / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match=r"add_bos_token: true, but bos_token is null"):
        TextTokenizer(folder)
