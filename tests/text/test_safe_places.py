"""Which two characters a text may be cut between: never inside a word, and between those that the
rule of its tokenizer names."""

from __future__ import annotations

import itertools
import pickle
from collections.abc import Callable
from typing import Any

import pytest
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers

from pyenc.text.long_texts import LLAMA3, Cuts
from pyenc.text.safe_places import Places

CHARACTERS = (
    "aZé1½_.,'\"$+ \t\n\r\x0b\x1c\x1d\x7f\x85\x00\xa0\xad\u0301\u0345\u0378\u1160\u11a8\u1680\u200b"
    "\u200d\u2003\u2028\u202f\u2126\u3000\u3099\u093e\ufe0f\ufeff\ufb01\uff76\uff9e´¨你が가ंİ🦊\U0001f3fd"
)
"""Of every category; some that normalisers join to those before, drop, or write as several."""

BYTES = pre_tokenizers.ByteLevel(add_prefix_space=False)
SPLIT = pre_tokenizers.WhitespaceSplit()
META = pre_tokenizers.Metaspace()

TOKENIZERS: dict[str, tuple[Any, Any, str]] = {
    "bert": (normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer(), "bert"),
    "bert, as written": (
        normalizers.BertNormalizer(clean_text=False, lowercase=False, handle_chinese_chars=False),
        pre_tokenizers.BertPreTokenizer(), "bert",
    ),
    "bytes": (None, BYTES, "classes"),
    "bytes, NFC": (normalizers.NFC(), BYTES, "classes"),
    "bytes, NFKC": (normalizers.NFKC(), BYTES, "classes"),
    "white space": (normalizers.Nmt(), SPLIT, "white"),
    "white space, NFKD": (normalizers.NFKD(), pre_tokenizers.Whitespace(), "white"),
    "spaces": (normalizers.Sequence([normalizers.Nmt(), normalizers.NFKC()]), META, "space"),
    "spaces, as written": (None, META, "space"),
    "spaces, the last ones dropped": (normalizers.Strip(left=False, right=True), META, "space"),
    "a space that becomes a letter": (normalizers.Replace("\u3000", "字"), SPLIT, "white"),
    "llama": (
        None,
        pre_tokenizers.Sequence([
            pre_tokenizers.Split(Regex(LLAMA3), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]),
        "llama",
    ),
}  # fmt: skip


def places(name: str) -> tuple[Tokenizer, Places]:
    normalizer, words, rule = TOKENIZERS[name]
    made = Tokenizer(models.WordLevel({"": 0}, ""))
    if normalizer is not None:
        made.normalizer = normalizer
    made.pre_tokenizer = words
    found = Cuts(made)._places
    assert found.rule == rule
    return made, found


def words_of(tokenizer: Tokenizer) -> Callable[[str], list[str]]:
    normal = tokenizer.normalizer.normalize_str if tokenizer.normalizer else str
    split = tokenizer.pre_tokenizer.pre_tokenize_str
    return lambda text: [word for word, _ in split(normal(text))]


@pytest.mark.parametrize("name", TOKENIZERS)
def test_no_safe_place_is_inside_a_word(name: str) -> None:
    tokenizer, found = places(name)
    words = words_of(tokenizer)
    copy = pickle.loads(pickle.dumps(found))
    safe = 0
    for around in (("x", "y"), ("x ", " y"), ("1", "."), (".", "1"), ("", "")):
        for a, b in itertools.product(CHARACTERS, CHARACTERS):
            left, right = around[0] + a, b + around[1]
            if found.is_safe(left + right, len(left)):
                safe += 1
                assert copy.is_safe(left + right, len(left))
                assert found.may_be(left + right, len(left))
                assert words(left + right) == words(left) + words(right), (left, right)
    assert safe > 100


@pytest.mark.parametrize(
    ("name", "safe", "unsafe"),
    [
        ("bert", ["a ", " a", "a.", ".a", "a你", "你a", "a\n", "  "], ["aa", "a1", "a\u0301"]),
        ("bytes", ["a ", "1 ", ". ", "a\n", "a1", "1a", "a.", ".a", "1.", ".1"],
         ["aa", " a", "  ", "'s", "\n ", ".\u0301"]),
        ("white space", ["a ", "a\n", "a\u3000", ".\t"], ["a.", "  ", " a", "a1"]),
        ("spaces", ["a ", "1 ", ". "], ["a\n", "a\u3000", "  ", " a", "a."]),
        ("spaces, as written", ["a ", "1 ", ". "], ["a\n", "  ", "\n ", " a", "a."]),
        ("spaces, the last ones dropped", ["a ", "1 ", ". "], ["a\n", "  ", " a", "a."]),
        ("a space that becomes a letter", ["a ", "a\n"], ["a\u3000", "  "]),
        ("llama", ["a ", ". ", "a1", "1a", "a.", "1.", ".1"], ["aa", ".a", "a\n", "  ", "'1"]),
    ],
)  # fmt: skip
def test_the_places_of_a_rule(name: str, safe: list[str], unsafe: list[str]) -> None:
    _, found = places(name)
    for pair in safe:
        assert found.is_safe(f"x{pair}y", 2), pair
    for pair in unsafe:
        assert not found.is_safe(f"x{pair}y", 2), pair
