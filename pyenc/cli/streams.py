"""Standard output, whose errors name it, and standard error, whose errors end nothing."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import Any

STDOUT = "standard output"


@contextlib.contextmanager
def printing() -> Iterator[None]:
    """Print here, and have it written out at the end.

    Raises:
        OSError: named "standard output"; a reader that went away stays a BrokenPipeError.
    """
    try:
        yield
        sys.stdout.flush()
    except OSError as error:
        if error.filename is not None or error.errno is None:
            raise
        raise OSError(error.errno, error.strerror, STDOUT) from error


def abandon(stream: Any) -> None:
    """Let what a stream still holds go nowhere, also when the interpreter flushes at its end."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        number = stream.fileno()
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, number)
        os.close(nowhere)


class BestEffort:
    """Standard error as long as it can be written: a full disk there is not that of the vectors."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        try:
            self._stream.write(text)
        except OSError:
            abandon(self._stream)
        return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError:
            abandon(self._stream)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
