"""The working folder of a run: its manifest, and the vectors of the texts embedded so far.

    OUT.partial/
        manifest.json       the checkpoint's files by sha256, and the options
        ranges.npy          (2, dim) float32, of int8 and uint8
        part-000000.npy     (texts, dim), float32 or as --precision says
        part-000000.json    rows, ids and sha256 of those texts, the rows left out, and sha256 of
                            the vectors; written last, so it marks the end

Every file is written under another name, synced, and moved into place: what stands there is whole.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InputError
from .files import replacing
from .rows import BadRow, Cut, Row
from .vectors import read_array, values_hash, write_header, write_values

MANIFEST = "manifest.json"
SETTINGS = "made with"
OUTPUT = "output"
"""Stem of the output while it is put together."""
SKIPPED = "skipped.jsonl"
"""The list of the rows left out, while it is put together."""
RANGES = "ranges.npy"
OURS = re.compile(
    rf"({re.escape(MANIFEST)}|{re.escape(RANGES)}|part-\d{{6,}}\.(npy|json))(\.tmp)?|{OUTPUT}\.\w+"
    rf"|{re.escape(SKIPPED)}"
)
"""Files of a working folder; no others are deleted."""


@dataclass(frozen=True)
class Part:
    """What is known of one finished part."""

    sha256: str
    """Of what was read: rows, ids and texts, and which rows were bad."""
    rows: list[int]
    """Those that have a vector."""
    ids: list[str | int] | None
    truncated: int = 0
    longest: int = 0
    """Tokens of the longest text that was cut."""
    exact: bool = True
    """Whether they are all of it, or at least so many."""
    skipped: list[tuple[int, str | int | None, str]] = field(default_factory=list)
    """Row, id and reason of those left out."""
    vectors: str = field(default="", compare=False)
    """sha256 of their values, once they are written."""

    @property
    def cut(self) -> Cut:
        return Cut(self.truncated, self.longest, self.exact)

    @property
    def entries(self) -> int:
        """Rows of the input that were read for it."""
        return len(self.rows) + len(self.skipped)

    @classmethod
    def of(cls, content: dict[str, Any]) -> Part:
        """From the JSON of a file that anybody may have touched.

        Raises:
            TypeError: it does not describe a part.
        """
        part = cls(**content)
        skipped = part.skipped
        whole = [part.truncated, part.longest, *part.rows]
        good = (
            isinstance(part.sha256, str)
            and isinstance(part.vectors, str)
            and isinstance(part.exact, bool)
            and isinstance(part.rows, list)
            and isinstance(skipped, list)
            and all(isinstance(each, list) and len(each) == 3 for each in skipped)
            and all(type(value) is int for value in [*whole, *(each[0] for each in skipped)])
            and all(isinstance(each[2], str) for each in skipped)
            and all(isinstance(each[1], (str, int, type(None))) for each in skipped)
        )
        if good and part.ids is not None:
            good = isinstance(part.ids, list) and len(part.ids) == len(part.rows)
            good = good and {type(each) for each in part.ids} in (set(), {str}, {int})
        if not good:
            raise TypeError("not a part")
        return part


def digest(entries: Sequence[Row | BadRow]) -> str:
    """sha256 over rows, ids and texts, each with its length, so that no two inputs run together."""
    state = hashlib.sha256()
    for entry in entries:
        if isinstance(entry, BadRow):
            state.update(json.dumps([entry.index, None]).encode())
            continue
        text = entry.text.encode("utf-8")
        state.update(json.dumps([entry.index, entry.id, len(text)]).encode() + text)
    return state.hexdigest()


class Parts:
    """The working folder of one output.

    Args:
        output: the file that the parts will become.
    """

    def __init__(self, output: Path) -> None:
        self.folder = output.with_name(output.name + ".partial")
        self.output = self.folder / f"{OUTPUT}{output.suffix}"
        self.skipped = self.folder / SKIPPED
        self.ranges = self.folder / RANGES
        self.count = 0
        """Finished parts; they are always the first ones."""
        self._seen: dict[int, bytes] = {}
        """sha256 of what their files said when this run first wrote or read them."""

    def exists(self) -> bool:
        return self.folder.exists()

    def start(self, settings: dict[str, Any], **notes: str) -> None:
        """Make the folder, or take up the one that is there.

        Args:
            settings: everything that decides what the vectors are.
            notes: for people who look into the folder; may change.

        Raises:
            InputError: the folder was made with other settings; the message names them.
        """
        path = self.folder / MANIFEST
        self.folder.mkdir(exist_ok=True)
        while self._json(self.count).exists():
            self.count += 1
        if self.count or path.exists():
            before = _read(path).get(SETTINGS, {})
            if not isinstance(before, dict):
                raise InputError(f"{path}: damaged; start anew with --overwrite")
            differing = _differences(before, settings)
            if differing:
                raise InputError(
                    f"{self.folder} was begun otherwise: {'; '.join(differing)}. Go back to that, "
                    "or start anew with --overwrite"
                )
        else:
            content = {**notes, SETTINGS: settings}
            # ASCII: names and prompts of a command line may hold bytes that are no UTF-8.
            _write(path, json.dumps(content, indent=1).encode())

    def add(self, vectors: np.ndarray, part: Part) -> None:
        """Keep the next part for good."""
        with replacing(self._npy(self.count)) as file:
            write_header(file, len(vectors), vectors.shape[1], vectors.dtype)
            write_values(file, vectors)
        content = json.dumps(asdict(replace(part, vectors=values_hash(vectors)))).encode()
        _write(self._json(self.count), content)
        self._seen[self.count] = hashlib.sha256(content).digest()
        self.count += 1

    def part(self, number: int) -> Part:
        """What is known of a finished part.

        Raises:
            InputError: its file is damaged, or is no longer what this run wrote or read there.
        """
        path = self._json(number)
        content = _content(path)
        seen = hashlib.sha256(content).digest()
        if self._seen.setdefault(number, seen) != seen:
            raise self._changed(path)
        try:
            return Part.of(_object(path, content))
        except TypeError as error:
            raise InputError(f"{path}: damaged; start anew with --overwrite") from error

    def check(self, texts: int, skipped: int) -> None:
        """The parts are those of this run, every row of it once: not so where another run came
        between, which a lock forbids where the file system has any.

        Args:
            texts: rows that the run gave a vector.
            skipped: rows that it left out.

        Raises:
            InputError: they are not.
        """
        rows, left, last = 0, 0, -1
        for number in range(self.count):
            part = self.part(number)
            for row in part.rows:
                if row <= last:
                    raise self._changed(self._json(number))
                last = row
            rows, left = rows + len(part.rows), left + len(part.skipped)
        if (rows, left) != (texts, skipped):
            raise self._changed(self.folder)

    def _changed(self, path: Path) -> InputError:
        return InputError(
            f"{path}: changed by somebody else while this run was at work, so nothing was written; "
            f"see that one run at a time uses {self.folder}, and start anew with --overwrite"
        )

    def vectors(self, number: int, dim: int, dtype: Any = np.float32) -> np.ndarray:
        """(texts, dim) of that dtype, of a finished part."""
        path = self._npy(number)
        try:
            vectors = read_array(path)
        except (OSError, InputError) as error:
            raise InputError(f"{path}: damaged; start anew with --overwrite") from error
        part = self.part(number)
        if vectors.shape != (len(part.rows), dim) or vectors.dtype != dtype:
            raise InputError(f"{path}: damaged: {vectors.dtype} {vectors.shape}; use --overwrite")
        if part.vectors != values_hash(vectors):
            raise InputError(
                f"{path}: damaged: not the vectors that were written; start anew with --overwrite"
            )
        return vectors

    def remove(self) -> None:
        """Delete the folder and what is ours in it.

        Raises:
            InputError: it holds files of somebody else; those stay.
        """
        if not self.exists():
            return
        # The marks go first: what is left of a removal cut short is not taken for parts.
        for path in sorted(self.folder.iterdir(), key=lambda path: ".json" not in path.suffixes):
            if OURS.fullmatch(path.name):
                path.unlink(missing_ok=True)
        try:
            self.folder.rmdir()
        except OSError as error:
            raise InputError(f"{self.folder} holds files that pyenc did not make") from error

    def discard_if_empty(self) -> None:
        """Leave no folder behind that would help nobody."""
        if self.count == 0 and self.exists():
            with contextlib.suppress(InputError, OSError):
                self.remove()

    def _npy(self, number: int) -> Path:
        return self.folder / f"part-{number:06d}.npy"

    def _json(self, number: int) -> Path:
        return self.folder / f"part-{number:06d}.json"


def _differences(old: dict[str, Any], new: dict[str, Any], within: str = "") -> list[str]:
    """What two settings disagree on, one phrase each."""
    found = []
    for key in [*old, *(key for key in new if key not in old)]:
        a, b = old.get(key), new.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            found += _differences(a, b, f"{key}: ")
        elif a != b:
            # Nobody compares hashes by eye.
            hashes = all(isinstance(v, str) and len(v) == 64 for v in (a, b) if v is not None)
            changed = "differs" if hashes and (a or b) else f"was {a!r}, is {b!r}"
            found.append(f"{within}{key} {changed}")
    return found


def _read(path: Path) -> dict[str, Any]:
    return _object(path, _content(path))


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: missing or damaged; start anew with --overwrite") from error


def _object(path: Path, content: bytes) -> dict[str, Any]:
    try:
        read = json.loads(content.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: missing or damaged; start anew with --overwrite") from error
    if not isinstance(read, dict):
        raise InputError(f"{path}: damaged; start anew with --overwrite")
    return read


def _write(path: Path, content: bytes) -> None:
    with replacing(path) as file:
        file.write(content)
