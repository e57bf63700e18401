"""Texts from lines: one a line, or a JSON value a line.

Data is cut at \\n alone, with one \\r before it taken as part of the line's end: str.splitlines and
files in text mode would also cut at U+2028, U+0085, \\v, \\f or a lone \\r and shift every row.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from reprlib import Repr
from typing import IO, Any

from ..errors import InputError
from .files import reading
from .rows import BadRow, Fields, Meter, Row
from .sniff import check_head

BOM = b"\xef\xbb\xbf"
BLANK = b" \t\r"
"""JSON's white space, without the line's end."""

_short = Repr()
_short.maxstring = _short.maxother = _short.maxlong = 40
_short.maxlevel, _short.maxlist, _short.maxdict = 2, 3, 3


def raw_lines(file: IO[bytes], name: str, meter: Meter) -> Iterator[tuple[int, bytes]]:
    """(line number from 1, line without its end); a byte order mark at the start is dropped."""
    for number, raw in enumerate(_read(file, name), 1):
        meter.done += len(raw)
        if raw.endswith(b"\n"):
            raw = raw[:-2] if raw.endswith(b"\r\n") else raw[:-1]
        if number == 1:
            check_head(raw, name)
            raw = raw.removeprefix(BOM)
        yield number, raw


def _read(file: IO[bytes], name: str) -> Iterator[bytes]:
    with reading(name):
        yield from file


def text_lines(file: IO[bytes], source: Fields, meter: Meter) -> Iterator[Row | BadRow]:
    """A text a line; an empty line is an empty text."""
    for number, raw in raw_lines(file, source.name, meter):
        try:
            yield Row(number - 1, None, _decoded(raw, f"{source.name}, line {number}"))
        except InputError as error:
            yield BadRow(number - 1, None, str(error))


def json_lines(file: IO[bytes], source: Fields, meter: Meter) -> Iterator[Row | BadRow]:
    """An object a line with the text under `source.field`, or a string; blank ones are left out."""
    index = 0
    id_type: type | None = None
    for number, raw in raw_lines(file, source.name, meter):
        if not raw.strip(BLANK):
            continue
        where = f"{source.name}, line {number}"
        identity = None
        try:
            value, twice = _json(raw, where)
            for name in (source.field, source.id_field):
                if name in twice:
                    raise InputError(f"{where}: it has {name!r} more than once")
            if source.id_field is not None:
                identity = _id(value, source.id_field, where)
                if type(identity) is not (id_type or type(identity)):
                    kind = "strings" if id_type is str else "whole numbers"
                    raise InputError(
                        f"{where}: {source.id_field!r} is {_short.repr(identity)}, but the rows "
                        f"before have {kind}"
                    )
            row = Row(index, identity, _text(value, source.field, where))
            id_type = id_type or type(identity)
            yield row
        except InputError as error:
            yield BadRow(index, identity, str(error))
        index += 1


def _decoded(raw: bytes, where: str) -> str:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(
            f"{where}: not UTF-8: byte 0x{raw[error.start]:02x} at byte {error.start + 1} of the "
            "line"
        ) from error


def _json(raw: bytes, where: str) -> tuple[Any, set[str]]:
    """A value, and names that stand in it more than once if it is an object."""
    line = _decoded(raw, where)
    twice: set[str] = set()

    def made(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        # The outermost object is the last one that is made.
        found = dict(pairs)
        twice.clear()
        if len(found) < len(pairs):
            names = [name for name, _ in pairs]
            twice.update(name for name in found if names.count(name) > 1)
        return found

    try:
        value = json.loads(line, object_pairs_hook=made)
        return value, twice if isinstance(value, dict) else set()
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where}: not valid JSON: {error}") from error


def _text(value: Any, field: str, where: str) -> str:
    text = _member(value, field, where) if isinstance(value, dict) else value
    if not isinstance(text, str):
        what = f"field {field!r}" if isinstance(value, dict) else "the line"
        raise InputError(f"{where}: {what} holds {_short.repr(text)}, expected a string")
    _check_unicode(text, where)
    return text


def _id(value: Any, field: str, where: str) -> str | int:
    if not isinstance(value, dict):
        what = "a bare string" if isinstance(value, str) else f"{_short.repr(value)}"
        raise InputError(f"{where}: {what} has no field {field!r}")
    identity = _member(value, field, where)
    whole = isinstance(identity, int) and not isinstance(identity, bool)
    if isinstance(identity, str):
        _check_unicode(identity, where)
    elif not whole or not -(2**63) <= identity < 2**63:
        raise InputError(
            f"{where}: id {field!r} holds {_short.repr(identity)}, expected a string or a whole "
            "number of 64 bits"
        )
    return identity  # type: ignore[no-any-return]


def _member(value: dict[str, Any], field: str, where: str) -> Any:
    if field not in value:
        names = ", ".join(map(_short.repr, list(value)[:8])) or "none"
        raise InputError(f"{where}: no field {field!r}; it has {names}")
    return value[field]


def _check_unicode(text: str, where: str) -> None:
    """JSON can spell half a surrogate pair, which no UTF-8 file and no tokenizer can hold."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InputError(f"{where}: lone surrogate {text[error.start]!r}, not Unicode") from error
