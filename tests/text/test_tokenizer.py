"""Tokenizers: from each published set of files, cut to length, refused when damaged."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers

from pyenc.errors import CheckpointError
from pyenc.text import TextTokenizer
from tests.conftest import GOLDEN
from tests.text.tokenizer_folders import edit, roberta, without

TEXTS = ["The quick, brown fox!", "", "naïve café 你好", "[SEP] stays one token", "x" * 300]


def copy(folder: Path, *files: str, source: str = "bert_mean_h4") -> Path:
    for file in files:
        (folder / file).write_bytes((GOLDEN / source / file).read_bytes())
    return folder


def same(a: TextTokenizer, b: TextTokenizer, texts: list[str]) -> None:
    for x, y in zip(a(texts, 999, spans=True), b(texts, 999, spans=True), strict=True):
        assert x.ids.tolist() == y.ids.tolist()
        assert x.spans is not None
        assert y.spans is not None
        assert x.spans.tolist() == y.spans.tolist()


def test_word_list_equals_tokenizer_json(tmp_path: Path) -> None:
    copy(tmp_path, "vocab.txt", "tokenizer_config.json")
    same(TextTokenizer(tmp_path), TextTokenizer(GOLDEN / "bert_mean_h4"), TEXTS)


def test_vocabulary_and_merges_equal_tokenizer_json(tmp_path: Path) -> None:
    """The RoBERTa files of jina-embeddings-v2-base-code, against the same tokenizer whole."""
    whole = Tokenizer(models.BPE())
    whole.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    whole.train_from_iterator(["def add(a, b): return a + b", "the quick brown fox"] * 5, trainer)
    whole.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    parts, json_only = tmp_path / "parts", tmp_path / "json"
    parts.mkdir()
    json_only.mkdir()
    whole.save(str(json_only / "tokenizer.json"))
    whole.model.save(str(parts))
    assert sorted(p.name for p in parts.iterdir()) == ["merges.txt", "vocab.json"]
    texts = [*TEXTS, "def f(a):\n    return a", "<mask> and </s>"]
    a, b = TextTokenizer(parts), TextTokenizer(json_only)
    assert a(["fox"], 99)[0].ids[0] == 0
    for x, y in zip(a(texts, 999), b(texts, 999), strict=True):
        assert x.ids.tolist() == y.ids.tolist()


def test_truncation_and_padding_in_the_file_are_ignored(tmp_path: Path) -> None:
    """MiniLM's tokenizer.json pads and cuts to 128; the recipe decides, not that file."""
    copy(tmp_path, "tokenizer.json")
    tokenizer = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding(length=20)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    same(TextTokenizer(tmp_path), TextTokenizer(GOLDEN / "bert_mean_h4"), TEXTS)


def test_cut_texts_keep_their_closing_token() -> None:
    tokenizer = TextTokenizer(GOLDEN / "bert_mean_h4")
    (whole,) = tokenizer(["the quick brown fox"], 99)
    assert tokenizer.num_special == 2
    for limit in range(2, len(whole.ids)):
        (cut,) = tokenizer(["the quick brown fox"], limit, spans=True)
        assert len(cut.ids) == limit
        assert cut.ids[-1] == whole.ids[-1]
        assert cut.ids[:-1].tolist() == whole.ids[: limit - 1].tolist()
        assert cut.full_length == len(whole.ids)


def test_model_max_length(tmp_path: Path) -> None:
    copy(tmp_path, "tokenizer.json")
    for value, expected in ((4096, 4096), (2147483648, None), (1e30, None), (None, None)):
        (tmp_path / "tokenizer_config.json").write_text(json.dumps({"model_max_length": value}))
        assert TextTokenizer(tmp_path).max_length == expected


def test_no_files_and_damaged_files(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no tokenizer: expected tokenizer.json, vocab.txt"):
        TextTokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text('{"model": {"type": "Magic"}}')
    with pytest.raises(CheckpointError, match=r"tokenizer.json: not a readable tokenizer"):
        TextTokenizer(tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    (tmp_path / "vocab.txt").write_text("a\nb\n")
    with pytest.raises(CheckpointError, match=r"vocab.txt: special token '\[UNK\]' is missing"):
        TextTokenizer(tmp_path)
    (tmp_path / "vocab.txt").unlink()
    (tmp_path / "vocab.json").write_text("{}")
    (tmp_path / "merges.txt").write_text("")
    with pytest.raises(CheckpointError, match=r"vocab.json: special token '<unk>' is missing"):
        TextTokenizer(tmp_path)


def test_words_of_another_kind_than_the_model_says(tmp_path: Path) -> None:
    """Taken as they are, and said so; a class that is named, or a fitting model, says it itself."""
    folder = roberta(tmp_path)
    right = TextTokenizer(folder)
    edit(folder / "tokenizer_config.json", lambda old: without(old, "tokenizer_class"))
    assert right.otherwise == TextTokenizer(folder).otherwise == ""
    (folder / "config.json").write_text('{"model_type": "bert"}')
    words = TextTokenizer(folder)
    assert words.otherwise == (
        "tokenizer.json is a BPE and no file names a class, so it is taken as it is; transformers "
        "5 takes its words for those of BertTokenizer, a WordPiece, by config.json's model_type"
    )
    same(words, right, TEXTS)
    (folder / "config.json").write_text("{}")
    assert TextTokenizer(folder).otherwise == ""
