"""Where an endless word is cut, and what is on the two sides: as of the whole text."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

from pyenc.text import TextTokenizer, joints, text_pieces
from tests.text.test_long_texts import Uncut
from tests.text.test_long_words import MODELS, SPECIAL, bpe
from tests.text.tokenizer_folders import edit

SPLITS: dict[str, tuple[str, Any]] = {
    "bytes": ("BPE", pre_tokenizers.ByteLevel(add_prefix_space=False)),
    "bytes, a space first": ("BPE", pre_tokenizers.ByteLevel(add_prefix_space=True)),
    "spaces written": ("BPE", pre_tokenizers.Metaspace(prepend_scheme="always")),
    "Unigram": ("Unigram", pre_tokenizers.Metaspace(prepend_scheme="first")),
    "Unigram of words": (
        "Unigram",
        pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()]),
    ),
    "WordPiece": ("WordPiece", pre_tokenizers.WhitespaceSplit()),
}


@pytest.mark.parametrize("split", SPLITS)
def test_the_library_is_not_given_an_endless_word(
    split: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, by = SPLITS[split]
    letters, more = list("abc▁"), sorted(pre_tokenizers.ByteLevel.alphabet())
    made = {
        "BPE": lambda: Tokenizer(bpe(random.Random(0), letters, more, unk_token="<unk>")),
        "Unigram": lambda: MODELS["Unigram"](random.Random(0)),
        "WordPiece": lambda: MODELS["WordPiece"](random.Random(0)),
    }[model]()
    made.pre_tokenizer = by
    made.save(str(tmp_path / "tokenizer.json"))
    given: list[int] = []
    encoded = text_pieces.encoded

    def noting(tokenizer: Any, texts: list[str], *rest: Any) -> list[Any]:
        given.extend(map(len, texts))
        return encoded(tokenizer, texts, *rest)

    monkeypatch.setattr(text_pieces, "encoded", noting)
    monkeypatch.setattr(text_pieces, "SHORT", 0)
    monkeypatch.setattr(text_pieces, "SIZE", 300)
    some = random.Random(1)
    texts = ["abc" * 2000, "".join(some.choice("abc") for _ in range(6000)), "ab cab " + "a" * 6000]
    for text in texts:
        (whole,) = Uncut(tmp_path)([text], 10**6, spans=True)
        given.clear()
        (tokens,) = TextTokenizer(tmp_path)([text], 10**6, spans=True)
        assert tokens.ids.tolist() == whole.ids.tolist()
        assert np.array_equal(tokens.spans, whole.spans)  # type: ignore[arg-type]
        assert max(given, default=0) < 2000


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize(
    "first", [pre_tokenizers.Punctuation(), pre_tokenizers.Digits(False)], ids=["marks", "numbers"]
)
def test_a_space_before_every_word(
    first: Any, nested: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of a piece that begins inside a word too, and steps that stand inside of steps."""
    pieces = [(token, 0.0) for token in SPECIAL] + [(c, -6.0) for c in "▁a1,"] + [("aa", -8.0)]
    made = Tokenizer(models.Unigram(pieces, 3, False))
    made.pre_tokenizer = pre_tokenizers.Sequence([first, pre_tokenizers.Metaspace()])
    made.save(str(tmp_path / "tokenizer.json"))
    if nested:
        last = {"type": "Punctuation", "behavior": "Isolated"}

        def one_more(old: dict[str, Any]) -> dict[str, Any]:
            steps = [old["pre_tokenizer"], last]
            return old | {"pre_tokenizer": {"type": "Sequence", "pretokenizers": steps}}

        edit(tmp_path / "tokenizer.json", one_more)
    monkeypatch.setattr(text_pieces, "SHORT", 0)
    monkeypatch.setattr(text_pieces, "SIZE", 300)
    for text in ("a" * 700 + ",", "a" * 700 + "1", "a" * 700 + ",1a"):
        (whole,) = Uncut(tmp_path)([text], 10**6, spans=True)
        (ours,) = TextTokenizer(tmp_path)([text], 10**6, spans=True)
        assert ours.ids.tolist() == whole.ids.tolist()
        assert np.array_equal(ours.spans, whole.spans)  # type: ignore[arg-type]


@pytest.mark.parametrize("model", ["Unigram", "BPE, byte fallback", "WordPiece"])
@pytest.mark.parametrize(
    "normalizer",
    [
        normalizers.NFKC(),
        normalizers.Sequence([normalizers.NFD(), normalizers.StripAccents()]),
        normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()]),
        normalizers.Replace("你你", "b"),
    ],
    ids=["NFKC", "without accents", "small letters", "two as one"],
)
def test_endless_words_that_are_written_otherwise(
    normalizer: Any, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Characters that are several, or one with those before it, or change places with them."""
    some = random.Random(0)
    made = MODELS[model](some)
    made.normalizer = normalizer
    made.save(str(tmp_path / "tokenizer.json"))
    monkeypatch.setattr(text_pieces, "SHORT", 0)
    monkeypatch.setattr(text_pieces, "SIZE", 51)
    whole, ours = Uncut(tmp_path), TextTokenizer(tmp_path)
    letters = ["A", "ﬁ", "é", "e\u0301", "ｶﾞ", "\u1112\u1161\u11ab", "a\u0323\u0301", "½", "b"]
    texts = ["".join(some.choice(letters) for _ in range(300)) for _ in range(4)]
    texts += [
        "A" * 500,
        "e\u0301" * 300,
        "ﬁ" * 300,
        "你" * 501,
        "a" + "\u0301" * 600 + "\u0323" * 9,
    ]
    for text in texts:
        (a,), (b,) = whole([text], 10**6, spans=True), ours([text], 10**6, spans=True)
        assert a.ids.tolist() == b.ids.tolist() == ours([text], 10**6)[0].ids.tolist()
        assert np.array_equal(a.spans, b.spans)  # type: ignore[arg-type]


def test_an_added_token_longer_than_what_is_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(bpe(random.Random(0), ["a", "b"], alphabet))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.add_tokens(["ab" * 2 * joints.NEAR])
    made.save(str(tmp_path / "tokenizer.json"))
    monkeypatch.setattr(text_pieces, "SHORT", 0)
    monkeypatch.setattr(text_pieces, "SIZE", 600)
    for start in (0, 1, 500):
        text = "ba" * start + "ab" * 2 * joints.NEAR + "ba" * 900
        (whole,) = Uncut(tmp_path)([text], 10**6)
        (ours,) = TextTokenizer(tmp_path)([text], 10**6)
        assert ours.ids.tolist() == whole.ids.tolist()
