"""Files that appear whole or not at all, and errors of the disk that name their file."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..errors import InputError

FULL = {errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC)}
"""No space on the device, a file beyond what may be written, a quota."""


@contextlib.contextmanager
def reading(name: str) -> Iterator[None]:
    """Errors of the disk in a file being read name it, which reads alone do not know.

    Raises:
        InputError
    """
    try:
        yield
    except OSError as error:
        raise InputError(f"{name}: cannot be read: {error.strerror or error}") from error


@contextlib.contextmanager
def writing(path: Path) -> Iterator[Any]:
    """A binary file to write, synced at the end; what could not be written whole is removed.

    Raises:
        OSError: with the path, which writes alone do not know.
    """
    try:
        with open(path, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
    except BaseException as error:
        with contextlib.suppress(OSError):
            path.unlink()
        if isinstance(error, OSError) and error.errno is not None and error.filename is None:
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Any]:
    """A binary file to write that appears under its name whole or not at all."""
    other = path.with_name(path.name + ".tmp")
    with writing(other) as file:
        yield file
    other.replace(path)
