"""How many tokens a text may have: what the files and the caller say, and what is told where a text
has more."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..callers import stacklevel
from ..errors import CheckpointError, InputError
from ..loading import Checkpoint
from ..models import EncoderConfig
from .arguments import whole
from .recipe import Recipe
from .text_pieces import Tokens
from .tokenizer import TextTokenizer


class TruncationWarning(UserWarning):
    """Texts were longer than the model's limit and were cut.

    Attributes:
        count: how many.
        longest: tokens of the longest of them.
        exact: whether those are all of it, or at least so many, as the message says: the rest of a
            very long text is not tokenised.
    """

    def __init__(self, message: str, count: int = 0, longest: int = 0, exact: bool = True) -> None:
        super().__init__(message)
        self.count = count
        self.longest = longest
        self.exact = exact


def loaded_limit(checkpoint: Checkpoint, tokenizer: TextTokenizer | None, recipe: Recipe) -> int:
    """The limit that the files set: the recipe's word, else the tokenizer's up to the model's, else
    the model's; never beyond a position table.
    """
    config = checkpoint.encoder.config
    by_tokenizer = None if tokenizer is None else tokenizer.max_length
    capped = "model_max_length" not in recipe.tokenizer_settings and config.position != "relative"
    if by_tokenizer is not None and capped:
        # As in sentence-transformers: what tokenizer_config.json says is capped, what the recipe
        # puts over it is not, nor T5's, which has no positions to run out of. MosaicBERT states
        # positions beside the size that it starts at.
        stated = checkpoint.config.get("max_position_embeddings")
        own = max(config.max_length, stated if type(stated) is int else 0)
        by_tokenizer = min(by_tokenizer, own)
    limit = recipe.max_length or by_tokenizer or config.max_length
    return min(limit, table_limit(config) or limit)


def check_room(limit: int, tokenizer: TextTokenizer | None, name: str) -> None:
    """Has a text room in the limit that the files set, as `checked_limit` asks of a caller's?

    Raises:
        CheckpointError: the special tokens alone are more.
    """
    special = 0 if tokenizer is None else tokenizer.num_special
    if limit < special:
        raise CheckpointError(
            f"{name}: its files set a limit of {limit} tokens (max_seq_length in "
            "sentence_bert_config.json, model_max_length in tokenizer_config.json, or the "
            f"positions in config.json), which leaves no room for the {special} special tokens"
        )


def table_limit(config: EncoderConfig) -> int:
    """Tokens that the absolute position table has rows for; 0 without one.

    Where positions are counted from the padding id (RoBERTa, MPNet), the rows up to it belong to no
    token: 514 rows are for 512. sentence-transformers takes 514 there, and fails.
    """
    below = 0 if config.padding_id is None else config.padding_id + 1
    return config.num_positions and config.num_positions - below


def checked_limit(max_length: Any, tokenizer: TextTokenizer | None, config: EncoderConfig) -> int:
    """The limit that a caller asks for.

    Raises:
        InputError: no whole number, no room for the special tokens, or beyond a position table.
    """
    max_length = whole("max_length", max_length)
    special = 0 if tokenizer is None else tokenizer.num_special
    if max_length < max(1, special):
        raise InputError(f"max_length {max_length} leaves no room for the {special} special tokens")
    table = table_limit(config)
    if table and max_length > table:
        why = ""
        if table < config.num_positions:
            why = f" ({config.num_positions} rows, counted from after the padding id)"
        raise InputError(
            f"max_length {max_length} is beyond this checkpoint's {table} position embeddings{why}"
        )
    return max_length


@dataclass(frozen=True)
class Overlong:
    """Which of some texts have more tokens than the limit."""

    texts: int
    """How many there are in all."""
    count: int
    limit: int
    first: int = 0
    """The number of the first that is too long."""
    worst: int = 0
    most: int = 0
    """The number of the longest, and its tokens."""
    exact: bool = True
    """Whether `most` is the whole of it, or at least so many."""
    what: str = "text"

    def report(self, on_long: str) -> None:
        """One `TruncationWarning` for all of them; under "error", an `InputError`."""
        if not self.count:
            return
        has = f"has {self.most}" if self.exact else f"has at least {self.most}"
        story = (
            f"{self.count} of {self.texts} {self.what}s exceed {self.limit} tokens (the longest, "
            f"{self.what} {self.worst}, {has})"
        )
        if on_long == "error":
            raise InputError(f"{story}; the first is {self.what} {self.first}")
        warning = TruncationWarning(
            f"{story} and were truncated", self.count, self.most, self.exact
        )
        warnings.warn(warning, stacklevel=stacklevel())

    def and_then(self, later: Overlong) -> Overlong:
        """Of both together."""
        texts, count = self.texts + later.texts, self.count + later.count
        longest = max(self, later, key=lambda each: each.most)
        exact = self.exact and later.exact
        first = self.first if self.count else later.first
        return replace(longest, texts=texts, count=count, first=first, exact=exact)


def count_long(
    tokens: Sequence[Tokens], limit: int, first: int = 0, what: str = "text"
) -> Overlong:
    """Those beyond the limit; `first` is the number of the first of the texts."""
    long = [i for i, t in enumerate(tokens) if t.full_length > limit]
    if not long:
        return Overlong(len(tokens), 0, limit, what=what)
    worst = max(long, key=lambda i: tokens[i].full_length)
    return Overlong(
        len(tokens), len(long), limit, first + long[0], first + worst, tokens[worst].full_length,
        all(tokens[i].exact for i in long), what,
    )  # fmt: skip
