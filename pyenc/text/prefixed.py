"""Texts with what is put before them: a prompt, as sentence-transformers has it, or an instruction,
as InstructorEmbedding has it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from ..errors import InputError
from .arguments import Before
from .recipe import Recipe
from .tokenizer import TextTokenizer

LONG = 1 << 14
"""Characters of what is put before a text, beyond which it is cut as a text is to be counted."""


@dataclass(frozen=True)
class Prefixed:
    """Texts as the tokenizer is given them, joined when it takes them, and what pooling leaves out.

    Both kinds count tokens: a tokenizer that joins the last letters of what is put before with the
    first of the text shifts nothing, the first so many tokens are left out all the same.
    """

    texts: Sequence[str]
    before: Sequence[str]
    """Of each text."""
    skip: np.ndarray
    """(n,) int64: leading tokens of each that pooling leaves out."""
    strip: bool = False
    """InstructorEmbedding's join, `(instruction + text.strip()).strip()`."""
    first: int = 0
    """The number of the first text, for messages."""

    def __len__(self) -> int:
        return len(self.texts)

    def __iter__(self) -> Iterator[str]:
        for before, text in zip(self.before, self.texts, strict=True):
            yield (before + text.strip()).strip() if self.strip else before + text

    def check_left(self, lengths: Sequence[int]) -> None:
        """Is there a token left to pool, of the so many tokens of each joined text?

        Raises:
            InputError: of a text there is none; its tokenizer made fewer of both than of what is
                put before it.
        """
        none = (self.skip > 0) & (self.skip >= np.asarray(lengths, dtype=np.int64))
        if none.any():
            index = int(np.flatnonzero(none)[0])
            raise InputError(
                f"text {self.first + index} has {lengths[index]} tokens with "
                f"{self.before[index]!r:.60} before it, of which pooling leaves out the first "
                f"{self.skip[index]}: none is left"
            )

    def spans(self, index: int, spans: np.ndarray) -> np.ndarray:
        """Spans (n, 2) of the joined text in text `index` alone: what lies before it is empty, what
        straddles its start is clipped."""
        before, lead = self.before[index], 0
        if self.strip:
            text = self.texts[index]
            joined, lead = before + text.strip(), len(text) - len(text.lstrip())
            start = len(before) - (len(joined) - len(joined.lstrip()))
        else:
            start = len(before)
        if not start and not lead:
            return spans
        inside = spans[:, 1:] > start
        return np.where(inside, np.clip(spans - start, 0, None) + lead, 0).astype(spans.dtype)


def prefixed(
    texts: Sequence[str], before: Before, recipe: Recipe, tokenizer: TextTokenizer, limit: int,
    first: int = 0,
) -> Prefixed:  # fmt: skip
    """The texts, each with what is put before it, and what pooling leaves out.

    A prompt is joined and counted as in sentence-transformers: as it is given. An instruction is
    so as in InstructorEmbedding 1.0.1; of one token (or none) nothing is left out, nor where the
    first or the last token is the vector.

    Args:
        texts: any number.
        before: instructions or a prompt.
        recipe: which pooling, and whether a prompt counts.
        tokenizer: counts the tokens.
        limit: tokens of a text at the most.
        first: the number of the first text, for messages.

    Raises:
        InputError: what pooling leaves out leaves no room for a text.
    """
    if before.instructions is None and before.instruction is None:
        skip = 0
        # The last token is the last one whatever is left out before it.
        if before.prompt and not recipe.include_prompt and set(recipe.poolings) != {"lasttoken"}:
            skip = _room("the prompt", before.prompt, limit, tokenizer)
        skips = np.full(len(texts), skip, dtype=np.int64)
        return Prefixed(texts, [before.prompt] * len(texts), skips, first=first)
    instructions = before.instructions
    if instructions is None:
        instructions = [before.instruction or ""] * len(texts)
    leaves_out = not set(recipe.poolings) <= {"cls", "lasttoken"}
    counts: dict[str, int] = {}
    for index, instruction in enumerate(instructions, first):
        if instruction not in counts:
            of_pair = "" if before.instructions is None else f" of pair {index}"
            count = _room(f"the instruction{of_pair}", instruction.strip(), limit, tokenizer)
            if count > 1 and leaves_out and "cls" in recipe.poolings:
                raise InputError(
                    f"an instruction is not served with the poolings {', '.join(recipe.poolings)}: "
                    "of its tokens one would count and others not; a prompt is served"
                )
            counts[instruction] = count if count > 1 and leaves_out else 0
    skips = np.array([counts[instruction] for instruction in instructions], dtype=np.int64)
    return Prefixed(texts, instructions, skips, strip=True, first=first)


def _room(what: str, text: str, limit: int, tokenizer: TextTokenizer) -> int:
    """The tokens of what is put before a text, which has room after them."""
    count, more = 0, ""
    if len(text) > LONG:  # mostly a text in the place of an instruction: not tokenised whole
        (tokens,) = tokenizer([text], limit)
        count, more = (0, "") if tokens.exact else (tokens.full_length, "at least ")
    count = count or tokenizer.prompt_length(text)
    if count + tokenizer.num_closing >= limit:
        raise InputError(
            f"{what} takes {more}{count} of the {limit} tokens of max_length, which leaves no room "
            "for the text"
        )
    return count
