"""Files of a checkpoint folder: small ones read, and any written whole."""

from __future__ import annotations

import contextlib
import json
import posixpath
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..errors import CheckpointError

ADAPTER = "adapter_config.json"
"""Says that a folder is of a PEFT adapter, whether or not other weights lie beside it."""

POINTER = b"version https://git-lfs.github.com/spec/"
"""How the few lines begin that stand for a large file where git alone has cloned a repository."""


def folder_below(path: str) -> str:
    """The path to a folder as the paths of its files begin: "./a/" is "a", and "." is ""."""
    normal = posixpath.normpath(path)
    return "" if normal == "." else normal


def check_fetched(path: Path) -> None:
    """A file is not the pointer of Git LFS to one.

    Raises:
        CheckpointError: it is; the message says how the file itself is had.
    """
    with contextlib.suppress(OSError), path.open("rb") as file:
        if file.read(len(POINTER)) == POINTER:
            raise CheckpointError(
                f"{path}: a pointer of Git LFS, not the file itself, which was not fetched: "
                "`git lfs pull` in the repository does, and so does its Hub name in the place of "
                "the folder"
            )


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file, or an error that names it."""
    check_fetched(path)
    try:
        content = json.loads(path.read_text("utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: missing") from error
    except (ValueError, OSError, RecursionError) as error:
        raise CheckpointError(f"{path}: not readable JSON: {error}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: expected a JSON object, got {type(content).__name__}")
    return content


@contextlib.contextmanager
def moved_into(path: Path) -> Iterator[Path]:
    """A path to write to, moved to `path` at the end; what could not be written whole is removed.

    The name is nobody else's: processes that train together may all save into one folder, and each
    file there is then a whole one, of one of them.
    """
    partial = path.with_name(f"{path.name}.{secrets.token_hex(4)}.partial")
    try:
        yield partial
        partial.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            partial.unlink()
        raise
