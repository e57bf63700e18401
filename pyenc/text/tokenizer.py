"""Text to token ids through the `tokenizers` library: checked, cut to length, with spans.

The library's own truncation and padding stay off: they are state of a shared object, and they hide
how many texts were cut. A text of which only the first tokens count is cut before it is tokenised.
"""

from __future__ import annotations

import json
import warnings
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import normalizers

from ..callers import stacklevel
from ..errors import CheckpointError, InputError
from ..forking import is_forked
from .faults import failure, not_unicode, panics_as_errors, surrogate_in
from .long_pieces import WHOLE, Block, LongPieces, LongWordWarning, Uncut, lengthen
from .long_texts import SIZE, Cuts, added_texts
from .tokenizer_files import TOKENIZER_FILES, has_tokenizer, read_tokenizer
from .tokenizer_rules import one_rule

CHUNK_TEXTS = 1024
CHUNK_CHARACTERS = 1 << 18
"""Texts and characters tokenised at a time, so that the library's own objects do not pile up: they
are about a hundred times as large as the text."""

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


class TextTokenizer:
    """A checkpoint's tokenizer.

    Args:
        folder: holds `tokenizer.json`, or `vocab.txt` (WordPiece), or `vocab.json` and
            `merges.txt` (byte-level BPE), and the settings beside it.
        lower_case: lower the text first, as `sentence_bert_config.json` may ask.
        overrides: settings over those of `tokenizer_config.json`.

    Attributes:
        max_length: the longest text in tokens that the files name, or None.
        truncation_side: where a text that is too long is cut, "left" or "right".
        class_name: the class whose rules made it.
        token_types: whether a model that has token types is to be given others than 0.
        disputed: what the files say in two ways and which was taken, or empty.

    Raises:
        CheckpointError: no tokenizer files, damaged ones, or settings that are not served.
    """

    def __init__(
        self, folder: Path, lower_case: bool = False, overrides: dict[str, Any] | None = None
    ) -> None:
        files = read_tokenizer(folder, overrides)
        self.max_length = files.max_length
        self.truncation_side = files.truncation_side
        self.class_name = files.class_name
        self.disputed = files.disputed
        self._tokenizer = files.tokenizer
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        if lower_case:
            steps = [normalizers.Lowercase()]
            if self._tokenizer.normalizer is not None:
                steps.append(self._tokenizer.normalizer)
            self._tokenizer.normalizer = normalizers.Sequence(steps)
        try:
            with panics_as_errors():
                self._set_up()
                self.token_types = files.token_types and _has_types(self._tokenizer)
        except Exception as error:  # the library raises bare Exception too
            raise CheckpointError(
                f"{folder}: the tokenizer fails on the shortest of texts: {error}"
            ) from error

    def __getstate__(self) -> dict[str, Any]:
        state = {key: value for key, value in self.__dict__.items() if key != "_long"}
        return state | {"_split": self._tokenizer.encode_special_tokens}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        # The library's own pickle forgets it.
        self._tokenizer.encode_special_tokens = self.__dict__.pop("_split")
        self._long = self._long_pieces()

    def _set_up(self) -> None:
        self._cuts = Cuts(self._tokenizer)
        self._around = _around(self._tokenizer)
        # Roberta's processor leaves a text's first space, and no other, in its token's span.
        spans = [self._tokenizer.encode(t, add_special_tokens=False).offsets for t in (" b", "a b")]
        self._first_space = spans[0][:1] != [(1, 2)] and not any(s == 1 for s, _ in spans[1])
        self._added = set(self._tokenizer.get_added_tokens_decoder())
        self._long = self._long_pieces()

    def _long_pieces(self) -> LongPieces | None:
        if not (self._cuts.can and self._cuts.near):
            return None
        return LongPieces(self._tokenizer, added_texts(self._tokenizer))

    @property
    def vocab_size(self) -> int:
        return int(self._tokenizer.get_vocab_size())

    @property
    def num_special(self) -> int:
        """Special tokens that every text is given."""
        return int(self._tokenizer.num_special_tokens_to_add(False))

    def same_rules(self, other: TextTokenizer) -> bool:
        """Whether both are seen to make the same tokens of every text, one at a time."""
        rules = (tokenizer._tokenizer.to_str() for tokenizer in (self, other))
        return self._around is not None and self._around == other._around and one_rule(*rules)

    def as_file(self) -> bytes:
        """A `tokenizer.json` that, taken as it is, makes this tokenizer again."""
        return str(self._tokenizer.to_str(pretty=True)).encode()

    def post_processor(self) -> Any:
        """What puts special tokens around a text, as `tokenizer.json` has it."""
        return json.loads(self._tokenizer.to_str())["post_processor"]

    @property
    def num_closing(self) -> int:
        """Special tokens after every text."""
        return 0 if self._around is None else len(self._around[1])

    def __call__(
        self,
        texts: Iterable[str],
        max_length: int,
        spans: bool = False,
        first: int = 0,
    ) -> list[Tokens]:
        """Tokenise texts, special tokens included, each cut to `max_length` tokens.

        Args:
            texts: any number; a few at a time are held in the library's own form.
            max_length: tokens of a text at the most.
            spans: whether to say where in the text each token stands.
            first: the number of the first text, for messages.

        Raises:
            InputError: a text holds lone surrogates; the message counts from `first`.
        """
        tokens: list[Tokens] = []
        chunk: list[_Text] = []
        size = 0
        for text in texts:
            one = self._first_piece(text, max_length)
            length = len(one.text) if one.piece is None else one.piece[1] - one.piece[0]
            if chunk and (len(chunk) == CHUNK_TEXTS or size + length > CHUNK_CHARACTERS):
                tokens += self._tokenize(chunk, max_length, spans, first + len(tokens))
                chunk, size = [], 0
            chunk.append(one)
            size += length
        return tokens + self._tokenize(chunk, max_length, spans, first + len(tokens))

    def prompt_length(self, prompt: str) -> int:
        """Tokens that a prompt takes at the start of a text: all but a closing special token."""
        try:
            with panics_as_errors():
                encoding = self._tokenizer.encode(prompt)
        except Exception as error:
            fault = surrogate_in(prompt)
            raise InputError(
                f"the tokenizer failed on the prompt {prompt!r:.60}: {fault or error}"
            ) from error
        closing = encoding.special_tokens_mask[-1:] == [1]
        return len(encoding.ids) - int(closing)

    def _first_piece(self, text: str, max_length: int) -> _Text:
        size = min(max(SHORT, A_TOKEN * max_length), SIZE)
        if len(text) <= size or not self._cuts.can or self._around is None:
            return _Text(text)
        short, gaps = self._cuts.shorten(text)
        if self.truncation_side == "left":
            return _Text(text, short, gaps, (self._cuts.start(short, len(short), size), len(short)))
        return _Text(text, short, gaps, (0, self._cuts.end(short, 0, size)))

    def _tokenize(
        self, chunk: list[_Text], max_length: int, spans: bool, first: int
    ) -> list[Tokens]:
        for number, one in enumerate(chunk, first):
            # What is cut off is never tokenised, and is refused all the same.
            if one.piece is not None and (fault := surrogate_in(one.text)) is not None:
                raise InputError(f"text {number} is not valid Unicode: {fault}")
            if one.piece is None and len(one.text) > WHOLE:
                _warn_whole(number, len(one.text))
        whole = [(n, one) for n, one in enumerate(chunk, first) if one.piece is None]
        cut = [(n, one) for n, one in enumerate(chunk, first) if one.is_short]
        encoded = iter(self._encode([one.text for _, one in whole], spans, True, _numbers(whole)))
        pieces = [one.short[one.piece[0] : one.piece[1]] for _, one in cut if one.piece]
        begun = iter(self._encode(pieces, spans, False, _numbers(cut)))
        return [
            self._cut(next(encoded), max_length, spans)
            if one.piece is None
            else self._go_on(one, next(begun) if one.is_short else None, max_length, spans, number)
            for number, one in enumerate(chunk, first)
        ]

    def _encode(
        self, texts: list[str], spans: bool, special: bool, numbers: Sequence[int], by: Any = None
    ) -> list[Any]:
        """Of some texts or pieces of texts; `numbers`: which text each is, or is of."""
        by = by or self._tokenizer
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

    def _cut(self, encoding: Any, max_length: int, spans: bool) -> Tokens:
        ids = np.asarray(encoding.ids, dtype=np.int64)
        where = np.asarray(encoding.offsets, dtype=np.int32).reshape(-1, 2) if spans else None
        full = len(ids)
        if full > max_length:
            # The special tokens around it stay: a cut text still ends as the model expects.
            inside = [i for i, special in enumerate(encoding.special_tokens_mask) if not special]
            opening, closing = (inside[0], full - 1 - inside[-1]) if inside else (full, 0)
            closing = min(closing, max_length)
            opening = min(opening, max_length - closing) if self.truncation_side == "left" else 0
            rest = max_length - opening - closing
            if self.truncation_side == "left":
                keep = np.r_[0:opening, full - closing - rest : full]
            else:
                keep = np.r_[0:rest, full - closing : full]
            ids = ids[keep]
            where = None if where is None else where[keep]
        return Tokens(ids, where, full)

    def _go_on(
        self, one: _Text, encoding: Any, max_length: int, spans: bool, number: int
    ) -> Tokens:
        """Piece after piece, until there are more tokens than are kept."""
        assert one.piece is not None
        assert self._around is not None
        opening, closing = self._around
        left = self.truncation_side == "left"
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
                start, end = self._cuts.start(one.short, start, SIZE), start
            else:
                kept.extend(piece)
                start, end = end, self._cuts.end(one.short, end, SIZE)
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

    def _blocks(
        self, one: _Text, start: int, end: int, spans: bool, number: int
    ) -> Iterator[Block]:
        """The tokens of a piece, a part of it at a time where it is long."""
        given = 0
        long = end - start > FEW * SIZE
        if long and self._long is not None:

            def encode(by: Any, piece: str, begin: int) -> Block:
                (encoding,) = self._encode([piece], spans, False, [number], by)
                return self._block(encoding, piece, begin, spans, by is self._tokenizer)

            try:
                for block in self._long.blocks(one.short, start, end, SIZE, encode, spans):
                    given += len(block[0])
                    yield block
                return
            except Uncut:
                pass
        if long and end - start > WHOLE:
            _warn_whole(number, end - start)
        (encoding,) = self._encode([one.short[start:end]], spans, False, [number])
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


@dataclass(frozen=True)
class _Text:
    """A text, and the piece of it that is tokenised first where it is a long one."""

    text: str
    short: str = ""
    gaps: np.ndarray = field(default_factory=lambda: np.zeros((0, 2), dtype=np.int64))
    piece: tuple[int, int] | None = None

    @property
    def is_short(self) -> bool:
        """Is there a first piece, and may the library be given all of it?"""
        return self.piece is not None and self.piece[1] - self.piece[0] <= FEW * SIZE


def _warn_whole(number: int, characters: int) -> None:
    message = (
        f"text {number} has {characters} characters without a place where it may be cut before it "
        "is tokenised, so they are tokenised at once, which takes hundreds of bytes a character"
    )
    warnings.warn(LongWordWarning(message, number, characters), stacklevel=stacklevel())


def _numbers(texts: list[tuple[int, _Text]]) -> list[int]:
    return [number for number, _ in texts]


def _has_types(tokenizer: Any) -> bool:
    """Are tokens of a single text given other types than 0?"""
    return any(any(tokenizer.encode(text).type_ids) for text in ("", "a"))


def _around(tokenizer: Any) -> tuple[list[int], list[int]] | None:
    """The special tokens before and after every text; None where they cannot be told apart."""
    for probe in ("a", "0", ".", "A"):
        encoding = tokenizer.encode(probe)
        inside = [i for i, special in enumerate(encoding.special_tokens_mask) if not special]
        if inside:
            return encoding.ids[: inside[0]], encoding.ids[inside[-1] + 1 :]
    return None


__all__ = [
    "TOKENIZER_FILES",
    "TextTokenizer",
    "Tokens",
    "has_tokenizer",
    "not_unicode",
    "surrogate_in",
]
