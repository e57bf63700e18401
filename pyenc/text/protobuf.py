"""The wire format of protocol buffers (https://protobuf.dev/programming-guides/encoding/), read
without their library: a message is fields, each a number, a wire type and a value.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from typing import Any

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
"""Wire types; 3 and 4 begin and end groups, which nobody writes any more."""

NAMES = {VARINT: "a whole number", FIXED64: "eight bytes", BYTES: "bytes", FIXED32: "four bytes"}


_FLOAT = struct.Struct("<f")


class DamagedMessage(ValueError):
    """Bytes that are no message, or none of the kind that is read."""


def fields(data: bytes) -> Iterator[tuple[int, int, int | bytes]]:
    """The fields of a message, in the order in which they are written.

    Args:
        data: the message.

    Yields:
        Number, wire type, and an integer (`VARINT`) or the bytes of the value.

    Raises:
        DamagedMessage: the bytes end inside of a field, or have what no message has.
    """
    at, end = 0, len(data)
    while at < end:
        start = at
        tag, at = (data[at], at + 1) if data[at] < 0x80 else _varint(data, at)
        number, kind = tag >> 3, tag & 7
        if number == 0:
            raise DamagedMessage(f"byte {start} begins a field of number 0")
        if kind == VARINT:
            value, at = _varint(data, at)
            yield number, kind, value
            continue
        if kind == BYTES:
            short = at < end and data[at] < 0x80
            size, at = (data[at], at + 1) if short else _varint(data, at)
        elif kind in (FIXED32, FIXED64):
            size = 4 if kind == FIXED32 else 8
        else:
            raise DamagedMessage(f"byte {start} begins a field of wire type {kind}")
        if at + size > end:
            raise DamagedMessage(
                f"it ends inside of the field at byte {start}: {end - at} bytes of {size}"
            )
        yield number, kind, data[at : at + size]
        at += size


def read(data: bytes, known: Mapping[int, tuple[str, int]]) -> dict[str, Any]:
    """The fields of a message that are wanted; of one that stands twice the last.

    Args:
        data: the message.
        known: by number, name and wire type; others are passed over.

    Returns:
        By name: an integer (`VARINT`), a float (`FIXED32`) or bytes.

    Raises:
        DamagedMessage: as of `fields`, or a field is of another wire type.
    """
    found: dict[str, Any] = {}
    for number, kind, value in fields(data):
        if number not in known:
            continue
        name, wanted = known[number]
        if kind != wanted:
            raise DamagedMessage(f"{name}: expected {NAMES[wanted]}, got {NAMES[kind]}")
        found[name] = _FLOAT.unpack(value)[0] if kind == FIXED32 else value  # type: ignore[arg-type]
    return found


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """A number of seven bits a byte, lowest first, and where it ends."""
    value = shift = 0
    start = at
    while at < len(data):
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
        if shift > 63:
            raise DamagedMessage(f"byte {start} begins a number of more than 64 bits")
    raise DamagedMessage(f"it ends inside of the number at byte {start}")
