"""What bytes look like at their beginning, so that what is no text is not embedded as one."""

from __future__ import annotations

import io
import json
import re
from typing import IO, Any

from ..errors import InputError

HEAD = 1 << 16
"""Bytes looked at."""
LINES = 16
"""Lines looked at."""

RECORD = b"\x1e"
"""What each value of a JSON text sequence begins with."""
STRING = rb'"[^"\\]*(?:\\.[^"\\]*)*"\s*'
OBJECT_BEGUN = re.compile(rb"\{\s*" + STRING + b":")
"""An object's beginning, also of one that is broken or goes on beyond what was read."""
OBJECTS_BEGUN = re.compile(rb"\[\s*" + OBJECT_BEGUN.pattern)
STRINGS_BEGUN = re.compile(rb"\[\s*" + STRING + b",")
"""The same of a list."""

MAGIC = {
    b"PAR1": ": this is a Parquet file: --format parquet, or the suffix .parquet",
    b"PARE": ": this is a Parquet file, encrypted, which is not read",
    b"ARROW1": ": this is an Arrow file, which is not read: write it as .parquet",
    b"\x1f\x8b": ": this is packed by gzip: gunzip -c it into standard input, with --format",
    b"\x28\xb5\x2f\xfd": ": this is packed by zstd: zstd -dc it into standard input, with --format",
    b"BZh": ": this is packed by bzip2: bzip2 -dc it into standard input, with --format",
    b"\xfd7zXZ\x00": ": this is packed by xz: xz -dc it into standard input, with --format",
    b"PK\x03\x04": ": this is a zip file: unzip -p it into standard input, with --format",
    b"\x93NUMPY": ": this is an array of numpy, not texts",
    b"\xff\xfe\0\0": ", line 1: not UTF-8 but UTF-32: iconv -f UTF-32 -t UTF-8",
    b"\0\0\xfe\xff": ", line 1: not UTF-8 but UTF-32: iconv -f UTF-32 -t UTF-8",
    b"\xff\xfe": ", line 1: not UTF-8 but UTF-16: iconv -f UTF-16 -t UTF-8",
    b"\xfe\xff": ", line 1: not UTF-8 but UTF-16: iconv -f UTF-16 -t UTF-8",
}


WIDE = {"UTF-32LE": (4, 0), "UTF-32BE": (4, 3), "UTF-16LE": (2, 0), "UTF-16BE": (2, 1)}
"""Bytes of a character, and which of them is not NUL in most scripts of few letters."""


def check_wide(head: bytes, name: str, more: str = "") -> None:
    """Refuse UTF-16 and UTF-32 without a byte order mark, which are UTF-8 with NUL bytes.

    Args:
        head: the first bytes.
        name: of the input.
        more: what else may be done.

    Raises:
        InputError: names the encoding.
    """
    for encoding, (width, own) in WIDE.items():
        whole = head[: min(len(head), 1024) // width * width]
        letters = whole[own::width]
        others = len(whole) - len(letters)
        if len(letters) > 1 and 0 not in letters and 4 * whole.count(0) >= 3 * others:
            raise InputError(
                f"{name}: not UTF-8 but {encoding}, by its NUL bytes: iconv -f {encoding} -t UTF-8"
                f"{more}"
            )


def check_head(head: bytes, name: str, sure: bool = False) -> None:
    """Refuse what begins as no text does.

    Args:
        head: the first bytes.
        name: of the input.
        sure: the first letters are enough, whatever follows.

    Raises:
        InputError: names what it is and what to do.
    """
    for magic, story in MAGIC.items():
        # "BZh" and "PAR1" are letters; in these files bytes that no text has follow soon.
        if head.startswith(magic) and (sure or not magic.isascii() or _binary(head)):
            raise InputError(f"{name}{story}")


def check_unnamed(head: bytes, ended: bool, field: str) -> None:
    """Refuse standard input of no named format that is more than lines of text.

    Args:
        head: its first bytes, whole lines of which are looked at.
        ended: whether `head` is all of it.
        field: name of the texts' field, by which a header is known.

    Raises:
        InputError: it looks like JSON lines, JSON, Parquet, CSV or UTF-16.
    """
    check_head(head, "standard input", sure=head.startswith(b"PAR1"))
    cut = head.removeprefix(b"\xef\xbb\xbf").split(b"\n")
    whole = cut if ended or len(cut) == 1 else cut[:-1]
    lines = [line.strip() for line in whole if line.strip()][:LINES]
    begun = [] if whole is cut else [cut[-1].strip()]  # of which the rest is still to come
    looks, right = _look(lines, begun, field)
    if looks:
        raise InputError(
            f"standard input looks like {looks}: {right}, or --format txt to embed every line as "
            "it stands"
        )


def first_lines(stream: IO[bytes]) -> tuple[bytes, bool]:
    """The first bytes with a whole line at least, if that is short; and whether they are all.

    No more is waited for than one line: who writes may be slow.
    """
    head = b""
    read = getattr(stream, "read1", stream.read)
    while len(head) < HEAD and b"\n" not in head.lstrip():
        more = read(HEAD - len(head))
        if not more:
            return head, True
        head += more
    return head, False


class Rejoined(io.RawIOBase):
    """A stream with the bytes that were taken from its beginning."""

    def __init__(self, head: bytes, rest: IO[bytes]) -> None:
        self._head = head
        self._rest = rest

    @classmethod
    def open(cls, head: bytes, rest: IO[bytes]) -> io.BufferedReader:
        return io.BufferedReader(cls(head, rest), HEAD)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        size = len(buffer)
        data = self._head[:size] or getattr(self._rest, "read1", self._rest.read)(size)
        self._head = self._head[size:]
        buffer[: len(data)] = data
        return len(data)


def _look(lines: list[bytes], begun: list[bytes], field: str) -> tuple[str, str]:
    """What lines look like and how that is read, or two empty strings.

    Judged by all of them: a file's first line may be the broken one.
    """
    whole = "JSON of many lines", "one object a line is read (jq -c '.[]'), with --format jsonl"
    if not lines:
        return "", ""
    first, second = lines[0], [*lines, *begun, b""][1]
    values = [_value(line) for line in lines]
    if any(b"\0" in line for line in lines):
        return "no text: there are NUL bytes", "UTF-16 goes through iconv -f UTF-16LE -t UTF-8"
    if any(line.startswith(RECORD) for line in lines):
        return (
            "a JSON text sequence (RFC 7464)",
            "tr -d '\\036' makes it JSON lines, --format jsonl",
        )
    if isinstance(values[0], list) and values[0] and isinstance(values[0][0], dict):
        return whole
    if values[0] is None and _opens(first, second):
        return whole
    if isinstance(values[0], dict) or any(_is_object(line) for line in [*lines, *begun]):
        return "JSON lines", "--format jsonl reads them"
    # A text may stand in quotes; all of them hardly do.
    if all(isinstance(value, str) for value in values):
        return "JSON lines", "--format jsonl reads them"
    # A text may begin with a note in brackets; most of them hardly are one.
    if 2 * sum(map(_is_record, values)) > len(values):
        if len(lines) == 1:
            return "a JSON array", "one value a line is read (jq -c '.[]'), with --format jsonl"
        right = "objects or strings are read, one a line (jq -c '.[]'), with --format jsonl"
        return "lines of JSON arrays", right
    for sign, name in ((b",", "CSV"), (b"\t", "TSV"), (b";", "CSV")):
        names = [word.strip(b' "') for word in first.split(sign)]
        if len(names) > 1 and field.encode("utf-8", "replace") in names:
            return f"{name} with a header", "write its texts as .jsonl or .parquet"
    return "", ""


def _opens(first: bytes, second: bytes) -> bool:
    """Whether a line begins JSON that goes on in the next one, or beyond what was read."""
    long = len(first) > HEAD // 2
    if first in (b"[", b"{"):
        return second[:1] in (b"{", b'"', b"[")
    if STRINGS_BEGUN.match(first):
        return long or first.endswith(b",") or second.startswith(b'"')
    return OBJECTS_BEGUN.match(first) is not None or (long and first.startswith(b'["'))


def _is_object(line: bytes) -> bool:
    return OBJECT_BEGUN.match(line) is not None


def _is_record(value: Any) -> bool:
    """A list that is more than a number in brackets."""
    return isinstance(value, list) and (len(value) > 1 or any(type(x) is not int for x in value))


def _value(line: bytes) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None


def _binary(head: bytes) -> bool:
    return any(byte < 9 or 13 < byte < 27 for byte in head[:4096]) or not _utf8(head[:4096])


def _utf8(head: bytes) -> bool:
    try:
        head.decode("utf-8")
    except UnicodeDecodeError as error:
        return error.end >= len(head) - 3 and error.reason == "unexpected end of data"
    return True
