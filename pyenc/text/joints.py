"""What a tokenizer makes of a text before its model: words; and what of a text cut inside one."""

from __future__ import annotations

import json
from array import array
from typing import Any

from tokenizers import PreTokenizedString, Token, Tokenizer

from .long_texts import steps_of
from .safe_places import begins

NEAR = 256
"""Characters looked at on each side of a place: words ahead do not depend on what is further."""

Word = tuple[str, tuple[int, int]]
"""A word as the model is given it, and where it stands in the normalised text."""


class Joints:
    """The words of one tokenizer's texts, and the places where a word may be put together.

    Args:
        tokenizer: its normalisers look no further than a letter's own accents, its pre-tokeniser
            no further than `NEAR` characters.
        added: the added tokens, each with every text that it is found by.

    Attributes:
        inner: makes of the rest of a text, cut somewhere, what the tokenizer makes of it in the
            whole text: no space is put before its first word. None where one is put before others.
        has_added: whether it has the added tokens: where it is the tokenizer itself.
    """

    def __init__(self, tokenizer: Tokenizer, added: list[tuple[Any, str]]) -> None:
        self._tokenizer = tokenizer
        self._added = added
        self._near = NEAR + max((len(text) for _, text in added), default=0)
        steps = steps_of(tokenizer.normalizer, "normalizers")
        # Characters at the most that a normaliser takes together, wherever they stand.
        taken = (step.get("pattern", {}).get("String", "") for step in steps)
        self._together = max(map(len, taken), default=1)
        state = {
            name: None if part is None else json.loads(part.__getstate__())
            for name, part in (
                ("normalizer", tokenizer.normalizer),
                ("pre_tokenizer", tokenizer.pre_tokenizer),
                ("post_processor", tokenizer.post_processor),
            )
        }
        plain = {name: _no_prefix(part) for name, part in state.items()}
        self.has_added = plain["pre_tokenizer"] == state["pre_tokenizer"]
        self.inner: Tokenizer | None = tokenizer
        self._plain = tokenizer
        if self.has_added:
            return
        empty = {"type": "WordLevel", "vocab": {}, "unk_token": ""}
        parts = Tokenizer.from_str(json.dumps({"added_tokens": [], "model": empty} | plain))
        self._plain = Tokenizer(tokenizer.model)
        for name in plain:
            if (part := getattr(parts, name)) is not None:
                setattr(self._plain, name, part)
        later = steps_of(tokenizer.pre_tokenizer, "pretokenizers")[1:]
        self.inner = self._plain if _no_prefix(later) == later else None

    def normal(self, text: str) -> str:
        normalizer = self._tokenizer.normalizer
        return text if normalizer is None else str(normalizer.normalize_str(text))

    def words(self, text: str, inside: bool = True) -> list[Word]:
        """The words of a text without added tokens; `inside`: of the rest of a longer text."""
        normal = self.normal(text)
        which = self.inner if inside and self.inner is not None else self._tokenizer
        words = list(which.pre_tokenizer.pre_tokenize_str(normal))
        if words and inside and self.inner is None:
            words[0] = self._plain.pre_tokenizer.pre_tokenize_str(normal)[0]
        return words

    def at(self, text: str, at: int) -> str | None:
        """What a cut before the character `at` does: "apart", it lies between words; "anew", it
        does so, and what follows is as the beginning of a text; "inside", it makes two words of
        one, the words that the two sides end and begin with; None, it changes more, or may.
        """
        begin = max(at - self._near, 0)
        left, right = text[begin:at], text[at : at + self._near]
        if self._tokenizer.normalizer is not None and not begins(right[0]):
            return None
        first, second = self.normal(left), self.normal(right)
        if self.normal(left + right) != first + second:
            return None
        # In a run of what is taken together its beginning decides, and that may be further away.
        for rest in (left[skipped:] for skipped in range(1, self._together) if begin):
            if self.normal(rest + right) != self.normal(rest) + second:
                return None
        if self.holds_added(left + right):
            return None
        # White space that an added token would take, and which goes on further than is looked at.
        if any(
            (t.lstrip and not right.strip()) or (t.rstrip and not left.strip())
            for t, _ in self._added
        ):
            return None
        # As the beginning of a text: where the left is all white space, so must be the right.
        whole, before = self.words(left + right, False), self.words(left, False)
        inner, anew = (
            [(word, (a + len(first), b + len(first))) for word, (a, b) in self.words(right, inside)]
            for inside in (True, False)
        )
        # "anew" first: of white space alone there are no words either way.
        for after, kind in ((anew, "anew"), (inner, "apart")):
            if whole == before + after:
                return kind
        if not before or not inner:
            return None
        (one, (start, end)), (two, (begin, stop)) = before[-1], inner[0]
        if end != begin:
            return None
        both = [*before[:-1], (one + two, (start, stop)), *inner[1:]]
        return "inside" if whole == both else None

    def holds_added(self, text: str) -> bool:
        """May an added token be found in a text?"""
        normal = self.normal(text)
        return any(found in text or found in normal for _, found in self._added)

    def letters(self, text: str, inside: bool) -> list[tuple[str, array[int], array[int]]]:
        """The words of a text, and where in the text each of their characters begins and ends."""
        split = PreTokenizedString(text)
        which = self.inner if inside and self.inner is not None else self._tokenizer
        if which.normalizer is not None:
            split.normalize(lambda part: which.normalizer.normalize(part))
        which.pre_tokenizer.pre_tokenize(split)
        words = [word for word, _, _ in split.get_splits("normalized")]
        split.tokenize(_by_letter)
        where = split.to_encoding().offsets
        found, at = [], 0
        for word in words:
            mine, at = where[at : at + len(word)], at + len(word)
            found.append((word, array("i", (a for a, _ in mine)), array("i", (b for _, b in mine))))
        if found and inside and self.inner is None:
            first = self.words(text)[0][0]
            extra = len(found[0][0]) - len(first)
            found[0] = first, found[0][1][extra:], found[0][2][extra:]
        return found


def _by_letter(word: str) -> list[Token]:
    tokens, at = [], 0
    for letter in word:
        size = len(letter.encode())
        tokens.append(Token(0, letter, (at, at + size)))
        at += size
    return tokens


def _no_prefix(part: Any) -> Any:
    """A component's settings, but that it puts no space before a text."""
    if isinstance(part, list):
        return [_no_prefix(one) for one in part]
    if not isinstance(part, dict):
        return part
    plain = {key: _no_prefix(value) for key, value in part.items()}
    if "add_prefix_space" in plain:
        plain["add_prefix_space"] = False
    if "prepend_scheme" in plain:
        plain["prepend_scheme"] = "never"
    return plain
