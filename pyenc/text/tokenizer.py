"""Text to token ids through the `tokenizers` library: checked, cut to length, with spans.

The library's own truncation and padding stay off: they are state of a shared object, and they hide
how many texts were cut. A text of which only the first tokens count is cut before it is tokenised.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import normalizers

from ..errors import CheckpointError, InputError
from .faults import not_unicode, panics_as_errors, surrogate_in
from .text_pieces import Pieces, Text, Tokens, check_whole, encoded
from .tokenizer_files import TOKENIZER_FILES, has_tokenizer, read_tokenizer
from .tokenizer_rules import one_rule

CHUNK_TEXTS = 1024
CHUNK_CHARACTERS = 1 << 18
"""Texts and characters tokenised at a time, so that the library's own objects do not pile up: they
are about a hundred times as large as the text."""


class TextTokenizer:
    """A checkpoint's tokenizer.

    Args:
        folder: holds `tokenizer.json`, or `vocab.txt` (WordPiece), or `vocab.json` and
            `merges.txt` (byte-level BPE), or a SentencePiece model (unigram: `spm.model`,
            `spiece.model`, `sentencepiece.bpe.model`), and the settings beside it.
        lower_case: lower the text first, as `sentence_bert_config.json` may ask.
        overrides: settings over those of `tokenizer_config.json`.

    Attributes:
        max_length: the longest text in tokens that the files name, or None.
        truncation_side: where a text that is too long is cut, "left" or "right".
        class_name: the class whose rules made it.
        token_types: whether a model that has token types is to be given others than 0.
        disputed: what the files say in two ways and which was taken, or empty.
        otherwise: what is taken otherwise than transformers does of the same files, or empty.
        made_of: names of the files that its vocabulary is from.

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
        self.otherwise = files.otherwise
        self.made_of = files.made_of
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
                self._pieces = Pieces(self._tokenizer)
                self.token_types = files.token_types and _has_types(self._tokenizer)
        except Exception as error:  # the library raises bare Exception too
            raise CheckpointError(
                f"{folder}: the tokenizer fails on the shortest of texts: {error}"
            ) from error

    def __getstate__(self) -> dict[str, Any]:
        state = {key: value for key, value in self.__dict__.items() if key != "_pieces"}
        return state | {"_split": self._tokenizer.encode_special_tokens}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        # The library's own pickle forgets it.
        self._tokenizer.encode_special_tokens = self.__dict__.pop("_split")
        self._pieces = Pieces(self._tokenizer)

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
        around = self._pieces.around
        return around is not None and around == other._pieces.around and one_rule(*rules)

    def as_file(self) -> bytes:
        """A `tokenizer.json` that, taken as it is, makes this tokenizer again."""
        return str(self._tokenizer.to_str(pretty=True)).encode()

    def post_processor(self) -> Any:
        """What puts special tokens around a text, as `tokenizer.json` has it."""
        return json.loads(self._tokenizer.to_str())["post_processor"]

    @property
    def num_closing(self) -> int:
        """Special tokens after every text."""
        return 0 if self._pieces.around is None else len(self._pieces.around[1])

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
        chunk: list[Text] = []
        size = 0
        for text in texts:
            one = self._pieces.first(text, max_length, self.truncation_side)
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

    def _tokenize(
        self, chunk: list[Text], max_length: int, spans: bool, first: int
    ) -> list[Tokens]:
        for number, one in enumerate(chunk, first):
            # What is cut off is never tokenised, and is refused all the same.
            if one.piece is not None and (fault := surrogate_in(one.text)) is not None:
                raise InputError(f"text {number} is not valid Unicode: {fault}")
            if one.piece is None:
                check_whole(number, len(one.text))
        by = self._tokenizer
        whole = [(n, one) for n, one in enumerate(chunk, first) if one.piece is None]
        cut = [(n, one) for n, one in enumerate(chunk, first) if one.is_short]
        wholes = iter(encoded(by, [one.text for _, one in whole], spans, True, _numbers(whole)))
        pieces = [one.short[one.piece[0] : one.piece[1]] for _, one in cut if one.piece]
        begun = iter(encoded(by, pieces, spans, False, _numbers(cut)))
        return [
            self._cut(next(wholes), max_length, spans)
            if one.piece is None
            else self._pieces.go_on(
                one,
                next(begun) if one.is_short else None,
                max_length,
                spans,
                number,
                self.truncation_side,
            )
            for number, one in enumerate(chunk, first)
        ]

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


def _numbers(texts: list[tuple[int, Text]]) -> list[int]:
    return [number for number, _ in texts]


def _has_types(tokenizer: Any) -> bool:
    """Are tokens of a single text given other types than 0?"""
    return any(any(tokenizer.encode(text).type_ids) for text in ("", "a"))


__all__ = [
    "TOKENIZER_FILES",
    "TextTokenizer",
    "Tokens",
    "has_tokenizer",
    "not_unicode",
    "surrogate_in",
]
