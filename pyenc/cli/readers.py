"""Texts from standard input, .txt, .jsonl and .parquet, row by row, never a whole file at once."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from ..errors import InputError

BOM = b"\xef\xbb\xbf"
PARQUET_ROWS = 1024
"""Rows decoded at a time."""


@dataclass(frozen=True, slots=True)
class Row:
    """One text of the input."""

    index: int
    """Its row in the input, from 0."""
    id: str | int | None
    text: str


@dataclass(frozen=True)
class Source:
    """An input that has been looked at: it exists, and what it is named can be read."""

    path: Path | None
    """None: standard input."""
    field: str
    id_field: str | None

    @property
    def name(self) -> str:
        return "standard input" if self.path is None else str(self.path)

    @property
    def kind(self) -> str:
        return ".txt" if self.path is None else self.path.suffix.lower()

    def rows(self) -> Iterator[Row]:
        """Every row in order.

        Raises:
            InputError: a row cannot be read; the message names file and line or row.
        """
        if self.kind == ".parquet":
            yield from _parquet(self)
            return
        with _opened(self.path) as file:
            yield from _text(file, self) if self.kind == ".txt" else _jsonl(file, self)

    def count(self) -> int | None:
        """Rows in all, where the file says so without being read."""
        if self.kind != ".parquet":
            return None
        return int(parquet_file(self).metadata.num_rows)


def open_source(word: str, field: str | None, id_field: str | None) -> Source:
    """The input an argument names.

    Raises:
        InputError: there is no such file, its kind is unknown, or fields are named that it has not.
    """
    path = None if word == "-" else Path(word)
    source = Source(path, field or "text", id_field)
    if path is not None:
        if source.kind not in (".txt", ".jsonl", ".parquet"):
            raise InputError(
                f"{path}: cannot tell what this holds; readable: .txt, .jsonl, .parquet, or - for "
                "standard input"
            )
        if not path.exists():
            raise InputError(f"{path}: no such file")
        if path.is_dir():
            raise InputError(f"{path}: a folder, expected a file")
    if source.kind == ".txt" and (field or id_field):
        option = "--field" if field else "--id-field"
        raise InputError(f"{source.name}: lines of text have no fields, so {option} means nothing")
    if source.kind == ".parquet":
        _check_columns(source)
    return source


def _opened(path: Path | None) -> contextlib.AbstractContextManager[IO[bytes]]:
    if path is not None:
        return open(path, "rb")
    return contextlib.nullcontext(sys.stdin.buffer)


def _lines(file: IO[bytes], name: str) -> Iterator[tuple[int, str]]:
    """(line number from 1, line without its end); a byte order mark at the start is dropped."""
    # Bytes are cut at \n alone: str.splitlines would also cut at U+2028 and shift every row.
    for number, raw in enumerate(file, 1):
        line = raw.removesuffix(b"\n").removesuffix(b"\r")
        if number == 1:
            line = line.removeprefix(BOM)
        try:
            yield number, line.decode("utf-8")
        except UnicodeDecodeError as error:
            raise InputError(
                f"{name}, line {number}: not UTF-8: byte 0x{line[error.start]:02x} at byte "
                f"{error.start + 1} of the line"
            ) from error


def _text(file: IO[bytes], source: Source) -> Iterator[Row]:
    for number, line in _lines(file, source.name):
        yield Row(number - 1, None, line)


def _jsonl(file: IO[bytes], source: Source) -> Iterator[Row]:
    index = 0
    id_type: type | None = None
    for number, line in _lines(file, source.name):
        if not line.strip():
            continue
        where = f"{source.name}, line {number}"
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise InputError(f"{where}: not valid JSON: {error}") from error
        text = _json_text(value, source.field, where)
        identity = None
        if source.id_field is not None:
            identity = _json_id(value, source.id_field, where)
            id_type = id_type or type(identity)
            if type(identity) is not id_type:
                raise InputError(
                    f"{where}: {source.id_field!r} is {identity!r}, but the rows before have "
                    f"{'strings' if id_type is str else 'whole numbers'}"
                )
        yield Row(index, identity, text)
        index += 1


def _json_text(value: Any, field: str, where: str) -> str:
    text = _member(value, field, where) if isinstance(value, dict) else value
    if not isinstance(text, str):
        what = f"field {field!r}" if isinstance(value, dict) else "the line"
        raise InputError(f"{where}: {what} holds {text!r:.40}, expected a string")
    _check_unicode(text, where)
    return text


def _json_id(value: Any, field: str, where: str) -> str | int:
    if not isinstance(value, dict):
        raise InputError(f"{where}: a bare string has no field {field!r}")
    identity = _member(value, field, where)
    whole = isinstance(identity, int) and not isinstance(identity, bool)
    if isinstance(identity, str):
        _check_unicode(identity, where)
    elif not whole or not -(2**63) <= identity < 2**63:
        raise InputError(
            f"{where}: id {field!r} holds {identity!r:.40}, expected a string or a whole number of "
            "64 bits"
        )
    return identity  # type: ignore[no-any-return]


def _member(value: dict[str, Any], field: str, where: str) -> Any:
    if field not in value:
        names = ", ".join(map(repr, list(value)[:8])) or "none"
        raise InputError(f"{where}: no field {field!r}; it has {names}")
    return value[field]


def _check_unicode(text: str, where: str) -> None:
    """JSON can spell half a surrogate pair, which no UTF-8 file and no tokenizer can hold."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InputError(f"{where}: lone surrogate {text[error.start]!r}, not Unicode") from error


def need_pyarrow(path: Path) -> Any:
    """The optional package behind .parquet.

    Raises:
        InputError: it is not installed.
    """
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise InputError(f"{path}: .parquet needs pyarrow: pip install 'pyenc[parquet]'") from error
    return pyarrow


def parquet_file(source: Source) -> Any:
    """The open file; an error that names it if it is not one."""
    assert source.path is not None
    arrow = need_pyarrow(source.path)
    try:
        return arrow.parquet.ParquetFile(source.path)
    except (arrow.ArrowException, OSError) as error:
        raise InputError(f"{source.path}: not a readable parquet file: {error}") from error


def _check_columns(source: Source) -> None:
    schema = parquet_file(source).schema_arrow
    types = need_pyarrow(source.path or Path()).types
    for name, whole_numbers in ((source.field, False), (source.id_field, True)):
        if name is None:
            continue
        if name not in schema.names:
            raise InputError(
                f"{source.name}: no column {name!r}; it has {', '.join(schema.names) or 'none'}"
            )
        kind = schema.field(name).type
        inner = kind.value_type if types.is_dictionary(kind) else kind
        string = types.is_string(inner) or types.is_large_string(inner)
        whole = types.is_integer(inner) and not types.is_uint64(inner)
        if not string and not (whole_numbers and whole):
            wanted = "strings or whole numbers (signed)" if whole_numbers else "strings"
            raise InputError(f"{source.name}: column {name!r} is {kind}, expected {wanted}")


def _parquet(source: Source) -> Iterator[Row]:
    columns = [source.field] + ([source.id_field] if source.id_field else [])
    arrow = need_pyarrow(source.path or Path())
    index = 0
    try:
        for batch in parquet_file(source).iter_batches(PARQUET_ROWS, columns=columns):
            texts = batch.column(source.field).to_pylist()
            ids = batch.column(source.id_field).to_pylist() if source.id_field else texts
            for text, identity in zip(texts, ids, strict=True):
                if text is None or identity is None:
                    name = source.field if text is None else source.id_field
                    raise InputError(f"{source.name}, row {index}: column {name!r} is null")
                yield Row(index, identity if source.id_field else None, text)
                index += 1
    except (arrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise InputError(f"{source.name}, row {index} or later: cannot be read: {error}") from error
