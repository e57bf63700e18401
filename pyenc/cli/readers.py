"""The input of a command, row by row: standard input, .txt, .jsonl and .parquet.

Never a whole file at once. A row that cannot be read comes out as a `BadRow` that says why.
"""

from __future__ import annotations

import contextlib
import os
import stat
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from ..errors import InputError
from .files import reading
from .lines import json_lines, text_lines
from .parquet import check_columns, count_rows, parquet_rows
from .rows import BadRow, Meter, Row
from .sniff import Rejoined, check_head, check_unnamed, check_wide, first_lines

FORMATS = {".txt": "txt", ".jsonl": "jsonl", ".ndjson": "jsonl", ".parquet": "parquet"}
"""By a file's suffix."""

ELSEWHERE = {
    ".gz": "gunzip -c {0} | pyenc ... - --format {1}",
    ".zst": "zstd -dc {0} | pyenc ... - --format {1}",
    ".bz2": "bzip2 -dc {0} | pyenc ... - --format {1}",
    ".json": "one object a line is .jsonl: jq -c '.[]' {0} | pyenc ... - --format jsonl; where {0} "
    "holds that already, --format jsonl says so",
    ".csv": "CSV is not read; write its texts as .jsonl or .parquet",
    ".tsv": "TSV is not read; write its texts as .jsonl or .parquet",
}
"""What to do with what is not read."""


@dataclass
class Source:
    """An input: what is named exists, and its fields fit its format."""

    path: Path | None
    """None: standard input."""
    field: str
    id_field: str | None
    format: str
    """One of "txt", "jsonl", "parquet"."""
    said: bool
    """Whether the format was named, by a suffix or by --format."""
    _stream: IO[bytes] | None = None
    """Standard input, once looked at."""

    @property
    def name(self) -> str:
        return "standard input" if self.path is None else str(self.path)

    def look(self) -> None:
        """Look at the beginning of standard input, or at the columns of a Parquet file.

        Raises:
            InputError: it is not what it is taken for, or lacks a column.
        """
        if self.path is None and self._stream is None:
            self._stream = self._standard_input()
        if self.format == "parquet":
            check_columns(self._parquet_file(), self)

    def rows(self) -> Iterator[Row]:
        """Every row in order.

        Raises:
            InputError: a row cannot be read; the message names file and line or row.
        """
        for entry in self.entries():
            if isinstance(entry, BadRow):
                raise InputError(entry.reason)
            yield entry

    def entries(self, meter: Meter | None = None) -> Iterator[Row | BadRow]:
        """Every row in order, the bad ones too.

        Args:
            meter: told how far the reading is.

        Raises:
            InputError: the input as a whole cannot be read.
        """
        self.look()
        meter = meter or Meter("", None)
        if self.format == "parquet":
            yield from parquet_rows(self._parquet_file(), self, meter)
            return
        read = text_lines if self.format == "txt" else json_lines
        with self._opened() as file:
            yield from read(file, self, meter)

    def meter(self) -> Meter:
        """How much there is to read: texts of .parquet, bytes of other files, unknown of a pipe."""
        if self.format == "parquet":
            self.look()
            return Meter("text", count_rows(self._parquet_file(), self))
        with contextlib.suppress(OSError, ValueError, AttributeError):
            status = self.path.stat() if self.path is not None else os.fstat(sys.stdin.fileno())
            if stat.S_ISREG(status.st_mode):
                return Meter("B", status.st_size)
        return Meter("B", None)

    def _opened(self) -> contextlib.AbstractContextManager[IO[bytes]]:
        if self.path is not None:
            with reading(self.name):
                return open(self.path, "rb")
        assert self._stream is not None
        return contextlib.nullcontext(self._stream)

    def _parquet_file(self) -> Path | IO[bytes]:
        return self.path or self._stream or Path()

    def _standard_input(self) -> IO[bytes]:
        if sys.stdin is None:
            raise InputError("standard input is closed; give INPUT, a file")
        if sys.stdin.isatty():
            print(
                "pyenc: reading texts from the terminal, one a line, until Ctrl-D", file=sys.stderr
            )
        stream = sys.stdin.buffer
        if self.format == "parquet":
            return _spooled(stream)
        with reading("standard input"):
            head, ended = first_lines(stream)
        if self.format == "jsonl":
            check_wide(head, "standard input")
        if not self.said:
            check_unnamed(head, ended, self.field)
        return Rejoined.open(head, stream)


def open_source(
    word: str, field: str | None, id_field: str | None, format: str | None = None
) -> Source:
    """The input an argument names.

    Args:
        word: a file, or "-" for standard input.
        field: where the texts are in .jsonl and .parquet; default "text".
        id_field: where the ids are, if they are wanted.
        format: "txt", "jsonl" or "parquet"; default by the suffix, of standard input "txt".

    Raises:
        InputError: there is no such file, its kind is unknown, or fields are named that it has not.
    """
    path = None if word == "-" else Path(word)
    known = format or ("txt" if path is None else FORMATS.get(path.suffix.lower()))
    if path is not None:
        if not path.exists():
            raise InputError(f"{path}: no such file{_pattern(path)}")
        if path.is_dir():
            raise InputError(f"{path}: a folder, expected a file")
        if known is None:
            raise InputError(
                f"{path}: cannot tell what this holds; readable: .txt, .jsonl, .parquet, - for "
                f"standard input, or say it with --format{_elsewhere(path)}"
            )
    assert known is not None
    said = format is not None or path is not None
    source = Source(path, "text" if field is None else field, id_field, known, said)
    if known == "txt" and (field is not None or id_field is not None):
        option = "--field" if field is not None else "--id-field"
        hint = "" if said else "; --format jsonl reads JSON lines"
        raise InputError(
            f"{source.name}: lines of text have no fields, so {option} means nothing{hint}"
        )
    if path is not None:
        if known != "parquet" and path.is_file():
            with reading(source.name), open(path, "rb") as file:
                head = file.read(4096)
            check_head(head, source.name)
            if format != "txt":
                every = ", or --format txt to embed every line as it stands"
                check_wide(head, source.name, every if known == "txt" else "")
        if known != "parquet" or path.is_file():
            source.look()
    return source


def _spooled(stream: IO[bytes]) -> IO[bytes]:
    """All of standard input in a temporary file, which is gone with the process."""
    try:
        spool = tempfile.TemporaryFile()  # noqa: SIM115
        while data := _piece(stream):
            spool.write(data)
        spool.flush()
    except OSError as error:
        raise InputError(
            f"{tempfile.tempdir or 'temporary folder'}: {error.strerror}: standard input is kept "
            "there under --format parquet, which is read from its end; TMPDIR=FOLDER names "
            "another, or give a file"
        ) from error
    return spool


def _piece(stream: IO[bytes]) -> bytes:
    with reading("standard input"):
        return stream.read(1 << 20)


def _pattern(path: Path) -> str:
    if any(sign in path.name for sign in "*?["):
        return "; patterns are the shell's: cat them into one stream, pyenc ... - --format jsonl"
    return ""


def _elsewhere(path: Path) -> str:
    hint = ELSEWHERE.get(path.suffix.lower())
    inside = FORMATS.get(path.with_suffix("").suffix.lower(), "txt")
    return "" if hint is None else f". {hint.format(path, inside)}"
