"""The tokens of a piece of text that has no safe place in it: one endless word, as a rule.

Never more than a little of it is tokenised at a time.

Between two words it is cut anywhere. Inside a word:

- BPE: where its tokens end whatever follows (`LongBPE`);
- Unigram: nowhere; the best path is followed through the word (`UnigramWord`);
- WordPiece, WordLevel: a word beyond their limit is one unknown token, so its middle is left out.

Where that cannot be had (an unusual model, a normaliser that a cut would disturb, an added token
inside), `Uncut` is raised, and the piece is tokenised whole; `LongWordWarning` says so where it is
large.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

import numpy as np
from tokenizers import Tokenizer, models

from .joints import Joints
from .long_bpe import LongBPE
from .long_unigram import LongToken, LongUnigram, UnigramWord

TRIES = 64
"""Places looked at for one where a piece may be cut."""

BATCH = 4096
"""Tokens of a word handed on at a time."""

WHOLE = 1 << 18
"""Characters that are tokenised whole without a word; they take up to about 100 MB."""

Block = tuple[np.ndarray, np.ndarray]
"""Ids (n,) int64, and spans (n, 2) int32 where they are asked for, else (0, 2)."""
Encode = Callable[[Tokenizer, str, int], Block]
"""The library's tokens of a piece, of which it is told where in the text it begins."""


class LongWordWarning(UserWarning):
    """A text could not be cut before it was tokenised, which takes hundreds of bytes a character.

    Attributes:
        text: its number.
        characters: tokenised at once.
    """

    def __init__(self, message: str, text: int = 0, characters: int = 0) -> None:
        super().__init__(message)
        self.text = text
        self.characters = characters


class Uncut(Exception):
    """No more tokens can be given by parts; those given are right."""


class LongPieces:
    """Tokenises the long pieces of one tokenizer's texts.

    Args:
        tokenizer: as `Joints` takes it.
        added: the added tokens, each with every text that it is found by.
    """

    def __init__(self, tokenizer: Tokenizer, added: list[tuple[Any, str]]) -> None:
        self._tokenizer = tokenizer
        self._joints = Joints(tokenizer, added)
        self._model: Any = None

    def __getstate__(self) -> dict[str, Any]:
        raise TypeError("made anew of its tokenizer")

    def blocks(
        self, text: str, begin: int, end: int, size: int, encode: Encode, spans: bool
    ) -> Iterator[Block]:
        """The tokens of `text[begin:end]`, whose ends are safe places, about `size` characters at a
        time.

        Raises:
            Uncut: no more can be given.
        """
        if self._model is None:
            self._model = _long_model(self._tokenizer)
        model = self._model
        if isinstance(model, LongUnigram):
            yield from self._paths(text, begin, end, size, spans)
        elif isinstance(model, int):
            short, gaps = self._without_middles(text[begin:end], size)
            if len(short) > max(4 * size, end - begin - size):
                raise Uncut
            ids, where = encode(self._tokenizer, short, 0)
            yield ids, lengthen(where, gaps) + np.int32(begin)
        else:
            at, inside = begin, False
            while end - at > 2 * size:
                after, kind = self._certain_place(text, at, inside, at + size, end)
                yield encode(self._checked(text[at:after], inside), text[at:after], at)
                at, inside = after, kind != "anew"
            yield encode(self._checked(text[at:end], inside), text[at:end], at)

    def _checked(self, piece: str, inside: bool) -> Tokenizer:
        """Which tokenizer a piece is for."""
        if not inside:
            return self._tokenizer
        inner = self._joints.inner
        if inner is None or (not self._joints.has_added and self._joints.holds_added(piece)):
            raise Uncut
        return inner

    def _place(self, text: str, near: int, end: int) -> tuple[int, str] | None:
        """The first place from `near` on that a cut may be at, and what it does there."""
        kinds = ((at, self._joints.at(text, at)) for at in islice(range(near, end), TRIES))
        return next(((at, kind) for at, kind in kinds if kind is not None), None)

    def _certain_place(
        self, text: str, begin: int, inside: bool, near: int, end: int
    ) -> tuple[int, str]:
        """Where a piece that begins at `begin` may end, from about `near` on."""
        found = self._place(text, near, end)
        if found is None:
            raise Uncut
        at, kind = found
        if kind != "inside":
            return found
        joints, model = self._joints, self._model
        begun = joints.words(text[begin:at], inside)[-1][0]
        for more in (8, 64):
            stop = min(at + more * model.longest, end)
            if not model.can or joints.holds_added(text[begin:stop]):
                break
            going = joints.words(text[at:stop])
            if len(going) > 1:
                kinds = ((c, joints.at(text, c)) for c in range(at + 1, stop))
                apart = ((c, kind) for c, kind in kinds if kind in ("apart", "anew"))
                if (found := next(apart, None)) is not None:
                    return found
                break
            for ends in model.certain(begun + going[0][0]):
                size = ends - len(begun)
                if size < 0:
                    break
                place = at + bisect_left(
                    range(stop - at),
                    size,
                    key=lambda n: sum(len(word) for word, _ in joints.words(text[at : at + n])),
                )
                first = "".join(word for word, _ in joints.words(text[at:place]))
                if first == going[0][0][:size] and joints.at(text, place) == "inside":
                    return place, "inside"
        raise Uncut

    def _without_middles(self, text: str, size: int) -> tuple[str, np.ndarray]:
        """A text without the middles of its words beyond the model's limit, and the gaps, as
        `lengthen` takes them."""
        joints, limit = self._joints, self._model
        parts, gaps, total, kept, begin = [], [], 0, 0, 0
        step = max(size, 8 * limit)
        while (found := self._place(text, begin + step, len(text))) is not None:
            at, kind = found
            near = text[begin:at]
            begin = at
            if (
                kind != "inside"
                or joints.holds_added(near)
                or len(joints.words(near)[-1][0]) <= limit
            ):
                continue
            after = self._end_of_word(text, at, step)
            if joints.at(near + text[after : after + step], len(near)) == "inside":
                parts.append(text[kept:at])
                gaps.append((at - total, total + after - at))
                total += after - at
                kept = begin = after
        parts.append(text[kept:])
        return "".join(parts), np.array(gaps, dtype=np.int64).reshape(-1, 2)

    def _end_of_word(self, text: str, at: int, step: int) -> int:
        """The last place looked at to which the word that holds the place `at` goes on."""
        joints = self._joints
        while (found := self._place(text, at + step, len(text))) is not None:
            after, kind = found
            part = text[at:after]
            if kind != "inside" or len(joints.words(part)) != 1 or joints.holds_added(part):
                break
            at = after
        return at

    def _paths(self, text: str, begin: int, end: int, size: int, spans: bool) -> Iterator[Block]:
        """Unigram: every word of the piece is followed to its end."""
        if not self._model.can:
            raise Uncut
        at, before = begin, "anew"
        word, where = UnigramWord(self._model), _Letters()
        while at < end:
            found = self._place(text, at + size, end) if end - at > 2 * size else (end, "anew")
            if found is None or self._joints.holds_added(text[at : found[0]]):
                raise Uncut
            after, kind = found
            piece = text[at:after]
            letters = (
                self._joints.letters(piece, before != "anew")
                if spans
                else [
                    (w, array("i"), array("i"))
                    for w, _ in self._joints.words(piece, before != "anew")
                ]
            )
            for number, (part, starts, ends) in enumerate(letters):
                if number or before != "inside":
                    word, where = UnigramWord(self._model), _Letters()
                where.add(starts, ends, at)
                yield from where.blocks(word.add(part))
                if number + 1 < len(letters) or kind != "inside":
                    yield from where.blocks(word.end())
            at, before = after, kind


class _Letters:
    """Where in the text the letters of a word stand."""

    def __init__(self) -> None:
        self._starts, self._ends = np.zeros(0, dtype=np.int32), np.zeros(0, dtype=np.int32)

    def add(self, starts: array[int], ends: array[int], at: int) -> None:
        more = [np.array(x, dtype=np.int32) + np.int32(at) for x in (starts, ends)]
        self._starts = np.concatenate([self._starts, more[0]])
        self._ends = np.concatenate([self._ends, more[1]])

    def blocks(self, tokens: Iterator[LongToken]) -> Iterator[Block]:
        while some := list(islice(tokens, BATCH)):
            table = np.array(some, dtype=np.int64)
            if len(self._starts):
                places = self._starts[table[:, 1]], self._ends[table[:, 2] - 1]
                yield table[:, 0].copy(), np.stack(places, axis=1)
            else:
                yield table[:, 0].copy(), np.zeros((0, 2), dtype=np.int32)


def lengthen(spans: np.ndarray, gaps: np.ndarray) -> np.ndarray:
    """Spans in a text that was shortened, in the text as it was.

    Args:
        spans: (n, 2).
        gaps: (m, 2): where in the shorter text something is left out, and how much in all up to it.
    """
    if not len(gaps):
        return spans
    total = np.concatenate([[0], gaps[:, 1]])
    return (spans + total[np.searchsorted(gaps[:, 0], spans, side="left")]).astype(spans.dtype)


def _long_model(tokenizer: Tokenizer) -> LongBPE | LongUnigram | int:
    model = tokenizer.model
    if isinstance(model, models.BPE):
        return LongBPE(model)
    if isinstance(model, models.Unigram):
        return LongUnigram(model)
    if isinstance(model, models.WordPiece):
        return int(model.max_input_chars_per_word)
    return max(map(len, tokenizer.get_vocab(with_added_tokens=False)), default=1)
