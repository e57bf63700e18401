"""Whether one place of a text is a safe cut."""

from __future__ import annotations

import unicodedata
from functools import lru_cache
from typing import Any

from tokenizers import Tokenizer

# Unicode's White_Space, the `\s` of the library's patterns; Python's counts four controls too.
_WHITE = frozenset(
    "\t\n\v\f\r \x85\xa0\u1680\u2028\u2029\u202f\u205f\u3000" + "".join(map(chr, range(8192, 8203)))
)
_CONTROLS = frozenset("\x1c\x1d\x1e\x1f")
_FAR = 4096
"""Characters looked at on each side of a place at the most."""


class Places:
    """Tells the safe places of one tokenizer's texts.

    The rule says where its pre-tokeniser is known to end a word:

    - "bert": beside what BERT drops (white space) or makes a word (punctuation, Chinese);
    - "classes": before white space, and between letters, numbers and the rest, as ByteLevel does;
    - "llama": before U+0020, and between them but for the rest before letters, as Llama 3 does;
    - "white": before white space;
    - "space": before U+0020 alone.

    But for "bert", what stands before white space must not be white space itself.

    Args:
        tokenizer: its normalisers look no further than a letter's own accents.
        added: the added tokens, each with every text that it is found by.
    """

    rule: str

    def __init__(self, tokenizer: Tokenizer, added: list[tuple[Any, str]]) -> None:
        self._tokenizer = tokenizer
        self._added = added
        self._reach = 1 + max((len(text) for _, text in added), default=0)
        self._between = lru_cache(1 << 14)(self._may_part)

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key != "_between"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._between = lru_cache(1 << 14)(self._may_part)

    def may_be(self, text: str, at: int) -> bool:
        """Might `text` be cut before its character `at`, by its two neighbours alone?"""
        return self._between(text[at - 1], text[at])

    def is_safe(self, text: str, at: int) -> bool:
        """May `text` be cut before its character `at`, 0 < `at` < len(text)?"""
        return self.may_be(text, at) and self._parts(text, at)

    def _normal(self, text: str) -> str:
        normalizer = self._tokenizer.normalizer
        return text if normalizer is None else str(normalizer.normalize_str(text))

    def _may_part(self, a: str, b: str) -> bool:
        if not begins(b):
            return False
        before, after = self._normal(a), self._normal(b)
        if b in _WHITE and not after:  # dropped where a text ends
            after = self._normal(b + "x").removesuffix("x")
        if self.rule == "bert":
            words = self._tokenizer.pre_tokenizer.pre_tokenize_str
            return bool(
                (after and words("x" + after)[0][0] == "x")
                or (before and words(before + "x")[-1][0] == "x")
            )
        if not before or not after:
            return False
        left, right = _kind(before[-1]), _kind(after[0])
        if b in _WHITE:
            one = self.rule in ("space", "llama")
            plain = b == after == " " or (not one and right == " ")
            return plain and left not in (" ", "")
        # A contraction, 's, would begin with the apostrophe.
        return (
            (self.rule == "classes" or (self.rule == "llama" and (left, right) != ("O", "L")))
            and {left, right} <= {"L", "N", "O"}
            and left != right
            and "'" not in (a, before[-1])
            and begins(a)
            and before == a
            and after == b
        )

    def _parts(self, text: str, at: int) -> bool:
        """Do the two sides normalise as they do together, and does no added token join them?"""
        near = self._reach
        while True:
            left, right = text[max(at - near, 0) : at], text[at : at + near]
            ends = at - near <= 0, at + near >= len(text)
            first, second = self._normal(left), self._normal(right)
            enough = [
                end or len(side.strip()) >= self._reach
                for end, side in zip(ends, (first, second), strict=True)
            ]
            if all(enough):
                break
            if near >= _FAR:
                return False
            near *= 4
        whole = self._normal(left + right)
        if whole != first + second:
            return False
        if self.rule != "bert" and right[0] in _WHITE and (not first or first[-1] in _WHITE):
            return False
        return not any(
            _joins(token, found, *sides)
            for token, found in self._added
            for sides in ((left, right), (first, second))
        )


def _joins(token: Any, found: str, left: str, right: str) -> bool:
    """Does this added token lie across the place between two texts, or mind what is there?"""
    head, tail = left[-len(found) :], right[: len(found)]
    joined, at = head + tail, len(head)
    begin = joined.find(found)
    while begin >= 0:
        if begin < at < begin + len(found):
            return True
        begin = joined.find(found, begin + 1)
    if token.rstrip and left.rstrip().endswith(found):
        return True
    if token.lstrip and right.lstrip().startswith(found):
        return True
    return bool(token.single_word) and (left.endswith(found) or right.startswith(found))


def begins(char: str) -> bool:
    """Does no form of normalisation join this character to one before it?

    Characters that are not assigned may come to mean anything; those that are keep this.
    """
    first = unicodedata.normalize("NFKD", char)[0]
    if first in _WHITE:
        return True
    jamo = "\u1160" <= first <= "\u11ff" or "\ud7b0" <= first <= "\ud7ff"
    return unicodedata.category(first)[0] in "LNPS" and not jamo


def _kind(char: str) -> str:
    """A letter, a number, another visible one, white space; "" for what is none of them surely."""
    if char in _WHITE:
        return " "
    if char in _CONTROLS:
        return ""
    kind = unicodedata.category(char)
    if kind[0] in "LN":
        return kind[0]
    return {"P": "O", "S": "O"}.get(kind[0], "" if kind in ("Cc", "Cn", "Cs") else "M")
