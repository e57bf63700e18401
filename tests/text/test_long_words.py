"""Endless words: their tokens, a part at a time, are those of the whole word, in little memory."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers, processors

from pyenc.text import LongWordWarning, TextTokenizer, long_pieces, text_pieces
from tests.text.test_long_texts import Uncut
from tests.text.tokenizer_folders import KINDS, bert, edit

LETTERS = "abcé你"
SPECIAL = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]


def _parts(some: random.Random, letters: list[str], count: int) -> list[str]:
    parts = list(letters)
    for _ in range(count):
        made = some.choice(parts) + some.choice(parts)
        if len(made) <= 10 and made not in parts:
            parts.append(made)
    return parts


def bpe(some: random.Random, letters: list[str], more: list[str], **options: Any) -> Any:
    """Merges in any order, those of longer tokens before those of shorter ones too."""
    known, merges = list(letters), []
    for _ in range(some.choice([10, 40, 100])):
        a, b = some.choice(known), some.choice(known)
        if len(a + b) <= 12 and (a, b) not in merges:
            merges.append((a, b))
            known.append(a + b)
    some.shuffle(merges)
    vocab = {token: i for i, token in enumerate(dict.fromkeys([*SPECIAL, *more, *known]))}
    return models.BPE(vocab, merges, **options)


def _byte_level(some: random.Random) -> Tokenizer:
    split = pre_tokenizers.ByteLevel(add_prefix_space=False)
    letters = sorted({c for word, _ in split.pre_tokenize_str(LETTERS + " ") for c in word})
    made = Tokenizer(bpe(some, letters, sorted(split.alphabet())))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=some.random() < 0.3)
    around = (("</s>", 2), ("<s>", 0), True, some.random() < 0.5)
    made.post_processor = processors.RobertaProcessing(*around)
    return made


def _byte_fallback(some: random.Random) -> Tokenizer:
    letters = [c for c in LETTERS + "▁" if c != "é"]
    options = {"byte_fallback": True, "unk_token": "<unk>", "fuse_unk": some.random() < 0.5}
    made = Tokenizer(bpe(some, letters, BYTES, **options))
    made.pre_tokenizer = pre_tokenizers.Metaspace(
        prepend_scheme=some.choice(["always", "first", "never"])
    )
    return made


def _unigram(some: random.Random) -> Tokenizer:
    """Scores of which many paths have the same sum."""
    scored = [(token, 0.0) for token in SPECIAL]
    for part in _parts(some, list("abc你▁"), 40):
        scored.append((part, -some.choice([2, 3, 5, 7.3, 11.1]) * some.choice([1, len(part)])))
    fallback = some.random() < 0.5
    scored += [(byte, -20.0) for byte in BYTES if fallback]
    made = Tokenizer(models.Unigram(scored, 3, fallback))
    white, space = pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()
    made.pre_tokenizer = some.choice([space, pre_tokenizers.Sequence([white, space])])
    if some.random() < 0.5:
        made.normalizer = normalizers.NFKC()
    return made


def _wordpiece(some: random.Random) -> Tokenizer:
    parts = ["[UNK]", *LETTERS, *("##" + part for part in _parts(some, list(LETTERS), 20))]
    vocab = {part: i for i, part in enumerate(dict.fromkeys(parts))}
    limit = some.choice([5, 20])
    made = Tokenizer(models.WordPiece(vocab, unk_token="[UNK]", max_input_chars_per_word=limit))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if some.random() < 0.5:
        made.normalizer = normalizers.NFC()
    return made


def _wordlevel(some: random.Random) -> Tokenizer:
    made = Tokenizer(models.WordLevel({"<unk>": 0, "ab": 1, "abcab": 2}, "<unk>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    return made


MODELS = {
    "byte-level BPE": _byte_level,
    "BPE, byte fallback": _byte_fallback,
    "Unigram": _unigram,
    "WordPiece": _wordpiece,
    "WordLevel": _wordlevel,
}


def _folder(folder: Path, model: str, some: random.Random) -> Path:
    made = MODELS[model](some)
    if made.post_processor is None and model not in ("WordPiece", "WordLevel"):
        made.post_processor = processors.TemplateProcessing(
            single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
        )
    if some.random() < 0.3:
        made.add_tokens([AddedToken("cab" * 3, lstrip=some.random() < 0.3)])
    folder.mkdir(parents=True)
    made.save(str(folder / "tokenizer.json"))
    (folder / "config.json").write_text("{}")
    settings = {"tokenizer_class": "PreTrainedTokenizerFast"}
    settings["truncation_side"] = some.choice(["left", "right"])
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


def _endless(some: random.Random) -> str:
    """One letter over and over, a few in turn, any; one mark; spaces."""
    parts = []
    for _ in range(some.choice([1, 1, 2, 4])):
        count = some.randint(200, 1500)
        few = some.sample(LETTERS, some.choice([1, 2, len(LETTERS)]))
        turn = "".join(some.choice(few) for _ in range(some.randint(1, 7)))
        parts.append(
            some.choice([
                turn * (count // len(turn)),
                "".join(some.choice(few) for _ in range(count)),
                " " * some.choice([1, 2, count, 700]),
                some.choice(["!", "'", "'s", "."]) * some.choice([1, 3, count]),
            ])
        )  # fmt: skip
    return "".join(parts)


@pytest.mark.parametrize("model", MODELS)
def test_endless_words_by_parts(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    some = random.Random(torch.initial_seed())
    parts = 0
    blocks = long_pieces.LongPieces.blocks

    def counted(*args: Any) -> Iterator[Any]:
        nonlocal parts
        for block in blocks(*args):
            parts += 1
            yield block

    monkeypatch.setattr(long_pieces.LongPieces, "blocks", counted)
    monkeypatch.setattr(text_pieces, "SHORT", 0)
    monkeypatch.setattr(text_pieces, "A_TOKEN", 1)
    for number in range(12):
        folder = _folder(tmp_path / str(number), model, some)
        whole, ours = Uncut(folder), TextTokenizer(folder)
        for _ in range(3):
            text = some.choice(["", "cab ab "]) + _endless(some) + some.choice(["", " ab cab"])
            monkeypatch.setattr(text_pieces, "SIZE", some.choice([40, 100, 300]))
            limit = some.choice([3, 17, 64, 300, 10**6])
            (a,), (b,) = whole([text], limit, spans=True), ours([text], limit, spans=True)
            assert a.ids.tolist() == b.ids.tolist() == ours([text], limit)[0].ids.tolist()
            assert np.array_equal(a.spans, b.spans)  # type: ignore[arg-type]
            if b.exact:
                assert a.full_length == b.full_length
            else:
                assert limit < b.full_length <= a.full_length
    assert parts > 12


@pytest.mark.parametrize("strips", ["lstrip", "rstrip"])
def test_white_space_that_an_added_token_takes(
    strips: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However far it goes on."""
    some = random.Random(torch.initial_seed())
    made = _byte_level(some)
    made.add_tokens([AddedToken("<x>", **{strips: True})])
    made.save(str(tmp_path / "tokenizer.json"))
    monkeypatch.setattr(text_pieces, "SHORT", 0)
    monkeypatch.setattr(text_pieces, "A_TOKEN", 1)
    whole, ours = Uncut(tmp_path), TextTokenizer(tmp_path)
    for text in ("ab" + " " * 900 + "<x>" + " " * 900 + "ba", "<x>".join(["\n" * 700] * 3)):
        for size in (50, 120):
            monkeypatch.setattr(text_pieces, "SIZE", size)
            for limit in (20, 10**6):
                (a,), (b,) = whole([text], limit, spans=True), ours([text], limit, spans=True)
                assert a.ids.tolist() == b.ids.tolist()
                assert np.array_equal(a.spans, b.spans)  # type: ignore[arg-type]


@pytest.mark.parametrize("options", [{}, {"lstrip": True}, {"normalized": False}], ids=str)
@pytest.mark.parametrize("model", [*MODELS, "a space first"])
def test_an_added_token_inside_an_endless_word(
    model: str, options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    some = random.Random(torch.initial_seed())
    made = MODELS.get(model, _byte_level)(some)
    if model not in MODELS:
        made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    made.add_tokens([AddedToken("cb", **options)])
    made.save(str(tmp_path / "tokenizer.json"))
    monkeypatch.setattr(text_pieces, "SHORT", 0)
    monkeypatch.setattr(text_pieces, "A_TOKEN", 1)
    whole, ours = Uncut(tmp_path), TextTokenizer(tmp_path)
    for size in (40, 700):  # so that it is near each place where a word is cut, or far from all
        monkeypatch.setattr(text_pieces, "SIZE", size)
        for place in range(0, 5 * size // 2, size // 3):
            text = "ab" * place + "cb" * (place % 3) + "ab" * 2 * size + "cb"
            for limit in (17, 10**6):
                (a,), (b,) = whole([text], limit, spans=True), ours([text], limit, spans=True)
                assert a.ids.tolist() == b.ids.tolist()
                assert np.array_equal(a.spans, b.spans)  # type: ignore[arg-type]


def test_words_about_as_long_as_the_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is left when the middle of a word is out is never a word that is known."""
    _wordlevel(random.Random(0)).save(str(tmp_path / "tokenizer.json"))
    monkeypatch.setattr(text_pieces, "SHORT", 0)
    monkeypatch.setattr(text_pieces, "A_TOKEN", 1)
    monkeypatch.setattr(text_pieces, "SIZE", 40)
    whole, ours = Uncut(tmp_path), TextTokenizer(tmp_path)
    texts = [
        "ab," * before + "abc" * count + "ab" + ",ab" * after
        for before in range(27)
        for count in (1, 2, 13, 14, 26, 27, 40, 53)
        for after in (0, 70)
    ]
    for a, b in zip(whole(texts, 10**6, True), ours(texts, 10**6, True), strict=True):
        assert a.ids.tolist() == b.ids.tolist()
        assert np.array_equal(a.spans, b.spans)  # type: ignore[arg-type]


def test_merges_that_never_settle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A chain by which a word's end decides its first token: tokenised whole, which is said."""
    letters = [chr(0x4E00 + i) for i in range(2000)]
    merges = list(pairwise(letters))[::-1]
    vocab = {t: i for i, t in enumerate(["<unk>", *letters, *(a + b for a, b in merges)])}
    made = Tokenizer(models.BPE(vocab, merges, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made.save(str(tmp_path / "tokenizer.json"))
    monkeypatch.setattr(text_pieces, "SIZE", 300)
    monkeypatch.setattr(text_pieces, "SHORT", 0)
    firsts = []
    for count in (1999, 2000):
        text = "".join(letters[:count])
        (whole,) = Uncut(tmp_path)([text], 9)
        monkeypatch.setattr(text_pieces, "WHOLE", 1000)
        with pytest.warns(LongWordWarning, match=f"text 7 has {count} characters") as caught:
            (tokens,) = TextTokenizer(tmp_path)([text], 9, first=7)
        message = caught[0].message
        assert isinstance(message, LongWordWarning)
        assert (message.text, message.characters) == (7, count)
        monkeypatch.setattr(text_pieces, "WHOLE", 10**6)
        assert tokens.ids.tolist() == whole.ids.tolist()
        firsts.append(tokens.ids[0])
    assert firsts[0] != firsts[1]


def test_a_tokenizer_that_cannot_be_cut_says_so(tmp_path: Path) -> None:
    folder = KINDS["as it is"](tmp_path)
    edit(folder / "tokenizer.json", lambda whole: whole | {"pre_tokenizer": None})
    with pytest.warns(LongWordWarning, match="text 1 has 280000 characters"):
        TextTokenizer(folder)(["fox", "fox " * 70_000], 9)


def test_an_alphabet_that_the_runs_do_not_list(tmp_path: Path) -> None:
    """Georgian is one word to BERT too."""
    text = "the fox " + "გამარჯობა" * 15_000 + " fox"
    folder = bert(tmp_path)
    (a,), (b,) = Uncut(folder)([text], 99, True), TextTokenizer(folder)([text], 99, True)
    assert a.ids.tolist() == b.ids.tolist()
    assert np.array_equal(a.spans, b.spans)  # type: ignore[arg-type]
