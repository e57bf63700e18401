"""What readers give: rows, rows that are bad, and how far the reading is; what is cut of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Protocol


@dataclass(frozen=True, slots=True)
class Row:
    """One text of the input."""

    index: int
    """Its row in the input, from 0."""
    id: str | int | None
    text: str


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row of the input that holds no usable text."""

    index: int
    id: str | int | None
    """Where it could be read all the same."""
    reason: str
    """Names file and line or row."""


class Cut(NamedTuple):
    """Texts that were longer than the maximum length."""

    texts: int = 0
    longest: int = 0
    """Tokens of the longest."""
    exact: bool = True
    """Whether that is all of it: of a very long text, the rest is not tokenised."""

    def and_then(self, later: Cut) -> Cut:
        """Of both together."""
        return Cut(
            self.texts + later.texts,
            max(self.longest, later.longest),
            self.exact and later.exact,
        )


@dataclass
class Meter:
    """How far the reading is."""

    unit: str
    """What is counted: "B" (bytes) or "text"."""
    total: int | None
    done: int = 0


class Fields(Protocol):
    """What a reader must know of its source."""

    field: str
    id_field: str | None

    @property
    def name(self) -> str: ...
