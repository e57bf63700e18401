"""A long text's tokens, piece by piece, until there are more than are kept.

So what is cut off is never tokenised, and the library's own objects are made of a piece at a time.
"""

from __future__ import annotations

import warnings
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..callers import stacklevel
from ..errors import InputError
from ..forking import is_forked
from .faults import failure, panics_as_errors
from .long_pieces import WHOLE, Block, LongPieces, LongWordWarning, Uncut, lengthen
from .long_texts import SIZE, Cuts, added_texts

SHORT = 8192
"""Texts up to this many characters are never cut before they are tokenised."""

FEW = 2
"""Times `SIZE` that the library may be given of a text at once."""

A_TOKEN = 8
"""Characters of a token, generously: how much of a text is tried first."""


@dataclass(frozen=True)
class Tokens:
    """One text's tokens."""

    ids: np.ndarray  # (n,) int64
    spans: np.ndarray | None  # (n, 2) int32, characters of the text; (0, 0) for special tokens
    full_length: int
    """Tokens before cutting to the maximum length."""
    exact: bool = True
    """Whether the text has `full_length` tokens, or at least so many."""


@dataclass(frozen=True)
class Text:
    """A text, and the piece of it that is tokenised first where it is a long one."""

    text: str
    short: str = ""
    gaps: np.ndarray = field(default_factory=lambda: np.zeros((0, 2), dtype=np.int64))
    piece: tuple[int, int] | None = None

    @property
    def is_short(self) -> bool:
        """Is there a first piece, and may the library be given all of it?"""
        return self.piece is not None and self.piece[1] - self.piece[0] <= FEW * SIZE


class Pieces:
    """How a tokenizer's texts go piece by piece.

    Args:
        tokenizer: of the library, set up.

    Attributes:
        cuts: where its texts may be cut.
        around: the special tokens before and after every text; None where they cannot be told.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self.cuts = Cuts(tokenizer)
        self.around = _around(tokenizer)
        # Roberta's processor leaves a text's first space, and no other, in its token's span.
        spans = [tokenizer.encode(t, add_special_tokens=False).offsets for t in (" b", "a b")]
        self._first_space = spans[0][:1] != [(1, 2)] and not any(s == 1 for s, _ in spans[1])
        self._added = set(tokenizer.get_added_tokens_decoder())
        self._long: LongPieces | None = None
        if self.cuts.can and self.cuts.near:
            self._long = LongPieces(tokenizer, added_texts(tokenizer))

    def first(self, text: str, max_length: int, side: str) -> Text:
        """A text, and the piece to begin with where it is a long one."""
        size = min(max(SHORT, A_TOKEN * max_length), SIZE)
        if len(text) <= size or not self.cuts.can or self.around is None:
            return Text(text)
        if max_length < sum(map(len, self.around)):  # what is around a text is cut too
            return Text(text)
        short, gaps = self.cuts.shorten(text)
        if side == "left":
            return Text(text, short, gaps, (self.cuts.start(short, len(short), size), len(short)))
        return Text(text, short, gaps, (0, self.cuts.end(short, 0, size)))

    def go_on(
        self, one: Text, encoding: Any, max_length: int, spans: bool, number: int, side: str
    ) -> Tokens:
        """The tokens of a text, piece after piece, until there are more than are kept.

        Args:
            one: what `first` gave.
            encoding: of its first piece, where the library may be given all of that.
            number: of the text, for messages.
            side: where a text that is too long is cut.
        """
        assert one.piece is not None
        assert self.around is not None
        opening, closing = self.around
        left = side == "left"
        room = max(max_length - len(opening) - len(closing), 0)
        start, end = one.piece
        kept: deque[Block] = deque()
        count, done = 0, False
        while not done and count <= room:
            if encoding is not None:
                blocks = iter([self._block(encoding, one.short[start:end], start, spans)])
            else:
                blocks = self._blocks(one, start, end, spans, number)
            done = start == 0 if left else end == len(one.short)
            piece: deque[Block] = deque()
            size = 0
            for block in blocks:
                piece.append(block)
                size += len(block[0])
                if not left and count + size > room:
                    done = done and next(blocks, None) is None
                    break
                while left and len(piece) > 1 and size - len(piece[0][0]) >= room:
                    count += len(piece[0][0])
                    size -= len(piece.popleft()[0])
            count += size
            if left:
                kept.extendleft(reversed(piece))
                start, end = self.cuts.start(one.short, start, SIZE), start
            else:
                kept.extend(piece)
                start, end = end, self.cuts.end(one.short, end, SIZE)
            encoding = None
        around = (np.array(opening, dtype=np.int64), np.array(closing, dtype=np.int64))
        ids = np.concatenate([np.zeros(0, dtype=np.int64), *(ids for ids, _ in kept)])
        keep = slice(max(len(ids) - room, 0), None) if left else slice(0, room)
        ids = ids[keep]
        ids = np.concatenate([around[0], ids, around[1]])
        full = count + len(opening) + len(closing)
        if not spans:
            return Tokens(ids, None, full, exact=done)
        nowhere = [np.zeros((len(a), 2), dtype=np.int32) for a in around]
        where = np.concatenate([nowhere[0][:0], *(where for _, where in kept)])[keep]
        where = np.concatenate([nowhere[0], lengthen(where, one.gaps), nowhere[1]])
        return Tokens(ids, where, full, exact=done)

    def _blocks(self, one: Text, start: int, end: int, spans: bool, number: int) -> Iterator[Block]:
        """The tokens of a piece, a part of it at a time where it is long."""
        given = 0
        long = end - start > FEW * SIZE
        if long and self._long is not None:

            def encode(by: Any, piece: str, begin: int) -> Block:
                (encoding,) = encoded(by, [piece], spans, False, [number])
                return self._block(encoding, piece, begin, spans, by is self._tokenizer)

            try:
                for block in self._long.blocks(one.short, start, end, SIZE, encode, spans):
                    given += len(block[0])
                    yield block
                return
            except Uncut:
                pass
        if long:
            check_whole(number, end - start)
        (encoding,) = encoded(self._tokenizer, [one.short[start:end]], spans, False, [number])
        ids, where = self._block(encoding, one.short[start:end], start, spans)
        yield ids[given:], where[given:]

    def _block(
        self, encoding: Any, piece: str, start: int, spans: bool, first: bool = True
    ) -> Block:
        """A piece's tokens; `first`: as a text's first piece, whose space is treated otherwise."""
        ids = np.asarray(encoding.ids, dtype=np.int64)
        if not spans:
            return ids, np.zeros((0, 2), dtype=np.int32)
        where = np.asarray(encoding.offsets, dtype=np.int32).reshape(-1, 2)
        if first and start and self._first_space and len(where) and ids[0] not in self._added:
            where[0] = np.maximum(where[0], int(piece[:1] == " "))
        return ids, where + np.int32(start)


def encoded(
    by: Any, texts: list[str], spans: bool, special: bool, numbers: Sequence[int]
) -> list[Any]:
    """The library's encodings of some texts or pieces of texts by a tokenizer of it.

    Args:
        spans: whether they are to say where tokens stand.
        special: whether special tokens are put around.
        numbers: which text each is, or is of.

    Raises:
        InputError: it failed; names the text.
    """
    encode = by.encode_batch if spans else by.encode_batch_fast
    try:
        with panics_as_errors():
            if is_forked():
                # Their threads stayed behind too; under TOKENIZERS_PARALLELISM=true the library
                # waits for them.
                one = by.encode
                return [one(text, add_special_tokens=special) for text in texts]
            return list(encode(texts, add_special_tokens=special)) if texts else []
    except Exception as error:  # the library raises bare Exception too
        raise InputError(failure(by, texts, special, numbers, error)) from error


def check_whole(number: int, characters: int) -> None:
    """Warn of a text that is tokenised at once, where it is so long that this shows."""
    if characters <= WHOLE:
        return
    message = (
        f"text {number} has {characters} characters without a place where it may be cut before it "
        "is tokenised, so they are tokenised at once, which takes hundreds of bytes a character"
    )
    warnings.warn(LongWordWarning(message, number, characters), stacklevel=stacklevel())


def _around(tokenizer: Any) -> tuple[list[int], list[int]] | None:
    """The special tokens before and after every text; None where they cannot be told apart."""
    for probe in ("a", "0", ".", "A"):
        encoding = tokenizer.encode(probe)
        inside = [i for i, special in enumerate(encoding.special_tokens_mask) if not special]
        if inside:
            return encoding.ids[: inside[0]], encoding.ids[inside[-1] + 1 :]
    return None
