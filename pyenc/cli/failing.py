"""What is said when something fails, and of what is worth a warning."""

from __future__ import annotations

import contextlib
import sys
import warnings
from collections.abc import Iterator
from typing import Any


def one_line(error: BaseException) -> str:
    """The message of an error, its lines joined."""
    lines = (line.strip() for line in str(error).splitlines())
    return "; ".join(line for line in lines if line) or type(error).__name__


def out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out; torch has its own way of saying so on each device."""
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or "DefaultCPUAllocator" in str(error)
    )


@contextlib.contextmanager
def warning_in_a_line() -> Iterator[None]:
    """Warnings are said as errors are: in one line, and not of which line of ours they are."""

    def show(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
        text = " ".join(str(message).split())
        print(f"pyenc: warning: {category.__name__}: {text}", file=sys.stderr)

    before = warnings.showwarning
    warnings.showwarning = show
    try:
        yield
    finally:
        warnings.showwarning = before
