"""What is wrong with a text, or with the tokenizers library that is given it.

Where the library's own code gives up, its exception is none of `Exception`'s: a panic of Rust comes
out as `pyo3_runtime.PanicException`, a `BaseException` that no module exports, and would pass every
handler of errors, as Ctrl-C does.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any


class TokenizerPanic(RuntimeError):
    """The library's code gave up; an `Exception`, as its other errors are."""


@contextmanager
def panics_as_errors() -> Iterator[None]:
    """Raises a `TokenizerPanic` for a panic; whatever else is raised passes.

    Raises:
        TokenizerPanic: what stands inside met a panic.
    """
    try:
        yield
    except BaseException as error:
        if type(error).__name__ != "PanicException":
            raise
        raise TokenizerPanic(f"the tokenizers library panicked: {error}") from error


def surrogate_in(text: str) -> str | None:
    """Where a text has a lone surrogate, which is no character; None if it has none."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        return f"lone surrogate {text[error.start]!r} at character {error.start}"
    return None


def not_unicode(texts: Sequence[str], first: int = 0) -> str | None:
    """Which text, counted from `first`, has a lone surrogate, and where; None if none has."""
    for index, text in enumerate(texts, first):
        if (fault := surrogate_in(text)) is not None:
            return f"text {index} is not valid Unicode: {fault}"
    return None


def failure(
    by: Any, texts: list[str], special: bool, numbers: Sequence[int], error: Exception
) -> str:
    """Which of some texts the library does not take, and why.

    Args:
        by: the library's tokenizer.
        texts: what it was given, texts or pieces of them.
        special: whether special tokens were to be put around each.
        numbers: which text each is, or is of.
        error: what it said of all of them together.
    """
    for text, number in zip(texts, numbers, strict=True):
        if (fault := surrogate_in(text)) is not None:
            return f"text {number} is not valid Unicode: {fault}"
    for text, number in zip(texts, numbers, strict=True):
        try:
            with panics_as_errors():
                by.encode(text, add_special_tokens=special)
        except Exception as own:
            return f"text {number}: the tokenizer failed: {own}"
    return f"the tokenizer failed: {error}"
