"""The work of `pyenc embed`: the input in units, units into parts, parts that survive a kill.

A unit is what `encode` is given: cut by the texts alone, so that a text's vector does not depend on
the clock, and a resumed run cuts alike. A part is whole units, closed by time: what a kill costs is
seconds, whatever the machine.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
from tqdm import tqdm

from ..errors import InputError, PyencError
from ..text import TextEncoder, TruncationWarning
from ..text.batching import BATCH_TOKENS
from .parts import Part, Parts, digest
from .readers import Source
from .rows import BadRow, Cut, Row
from .tally import Tally

UNIT_TEXTS = 4096
UNIT_CHARACTERS = 4_000_000
"""Of a unit at the most, so that memory is bounded."""
UNIT_BATCHES = 2
"""Batches of tokens in a unit, about: what is lost where a slow machine is killed."""
BYTES_A_TOKEN = 4
"""Of UTF-8, about, in any script; tokens are estimated, for tokenising twice would cost more."""

PART_SECONDS = 5.0
PART_TEXTS = 16_384
"""A part is closed by whichever comes first."""

CLOCK = time.monotonic

Entry = Row | BadRow


class Unsaved:
    """Units that are done, until they are a part."""

    def __init__(self, parts: Parts, tally: Tally, with_ids: bool) -> None:
        self._parts, self._tally, self._with_ids = parts, tally, with_ids
        self._cut = Cut()
        self._clear()

    def add(self, entries: list[Entry], rows: list[Row], vectors: np.ndarray, part: Part) -> None:
        """Take a unit: what was read, what has a vector, and `part` for its counts."""
        self._entries += entries
        self._rows += rows
        self._vectors.append(vectors)
        self._skipped += part.skipped
        self._cut = self._cut.and_then(part.cut)
        if len(self._entries) >= PART_TEXTS or CLOCK() - self._since >= PART_SECONDS:
            self.save()

    def save(self) -> None:
        """Make a part of what there is; nothing where there is nothing."""
        if not self._entries:
            return
        ids = [row.id for row in self._rows if row.id is not None] if self._with_ids else None
        rows = [row.index for row in self._rows]
        part = Part(digest(self._entries), rows, ids, *self._cut, self._skipped)
        self._parts.add(np.concatenate(self._vectors), part)
        self._tally.add(part, resumed=False)
        self._clear()

    def _clear(self) -> None:
        self._since = CLOCK()
        self._entries: list[Entry] = []
        self._rows: list[Row] = []
        self._vectors: list[np.ndarray] = []
        self._skipped: list[tuple[int, str | int | None, str]] = []
        self._cut = Cut()


def embed(
    source: Source,
    encoder: TextEncoder,
    options: dict[str, Any],
    parts: Parts,
    *,
    shard: tuple[int, int] = (1, 1),
    skip_bad: bool = False,
    progress: bool = False,
) -> Tally:
    """Bring every part into being: those that stand are checked, the others are computed.

    Args:
        source: the texts.
        encoder: what embeds them.
        options: of `TextEncoder.encode`.
        parts: started; what stands there is not computed again.
        shard: (i, n): rows i - 1, i - 1 + n, ... only.
        skip_bad: leave bad rows out, and say so in the parts, instead of ending.
        progress: one bar on standard error, in bytes of a file, or in texts where it counts them.

    Raises:
        InputError: a row is bad, or the texts are not those that the parts were begun with.
        PyencError: a vector is not finite.
    """
    tally = Tally()
    meter = source.meter()
    place, shards = shard
    read = (e for e in source.entries(meter) if e.index % shards == place - 1)
    entries = read if skip_bad else _all_good(read)
    for number in range(parts.count):
        _check_part(source, parts, number, entries, tally)
    worker = _Worker(source, encoder, options, skip_bad, tally)
    unsaved = Unsaved(parts, tally, source.id_field is not None)
    bar = tqdm(
        total=meter.total, initial=meter.done, desc="embed", unit=meter.unit, disable=not progress,
        unit_scale=meter.unit == "B", dynamic_ncols=True,
    )  # fmt: skip
    with bar:
        texts = tally.texts
        try:
            for unit in _units(entries, _budget(encoder, options), _limit(encoder, options)):
                unsaved.add(unit, *worker(unit))
                texts += len(unit)
                if meter.unit == "B":
                    bar.set_postfix_str(f"{texts:,} texts", refresh=False)
                bar.update(meter.done - bar.n)
        finally:
            # Also of what ends here early, whatever ends it: the units done are kept.
            unsaved.save()
    if tally.skipped and not tally.texts:
        raise InputError(f"no row is good, of {tally.skipped:,}; the first: {tally.reason}")
    return tally


def _all_good(entries: Iterable[Entry]) -> Iterator[Entry]:
    for entry in entries:
        if isinstance(entry, BadRow):
            raise InputError(f"{entry.reason} (--skip-bad leaves such rows out)")
        yield entry


def _check_part(
    source: Source, parts: Parts, number: int, entries: Iterator[Entry], tally: Tally
) -> None:
    """Read on by a finished part; an error unless it is what the part was made of."""
    part = parts.part(number)
    read = list(islice(entries, part.entries))
    if len(read) < part.entries:
        raise InputError(
            f"{source.name}: has fewer texts than {parts.folder} was begun with; start anew with "
            "--overwrite"
        )
    if part.sha256 != digest(read):
        first, last = (read[0].index, read[-1].index) if read else (0, 0)
        raise InputError(
            f"{source.name}: the texts of rows {first} to {last} are not those that {parts.folder} "
            "was begun with; start anew with --overwrite"
        )
    tally.add(part, resumed=True)


def _budget(encoder: TextEncoder, options: dict[str, Any]) -> int:
    """Tokens of a unit, about."""
    default = BATCH_TOKENS.get(encoder.device.type, BATCH_TOKENS["cuda"])
    return UNIT_BATCHES * max(options["batch_tokens"] or 0, default)


def _limit(encoder: TextEncoder, options: dict[str, Any]) -> int:
    return int(options["max_length"] or encoder.max_length)


def _units(entries: Iterable[Entry], budget: int, limit: int) -> Iterator[list[Entry]]:
    """Entries by the unit; cut by the texts alone."""
    unit: list[Entry] = []
    characters = tokens = 0
    for entry in entries:
        unit.append(entry)
        if isinstance(entry, Row):
            characters += len(entry.text)
            tokens += min(limit, 2 + len(entry.text.encode("utf-8")) // BYTES_A_TOKEN)
        if len(unit) >= UNIT_TEXTS or characters >= UNIT_CHARACTERS or tokens >= budget:
            yield unit
            unit, characters, tokens = [], 0, 0
    if unit:
        yield unit


@dataclass
class _Worker:
    """From a unit to its vectors."""

    source: Source
    encoder: TextEncoder
    options: dict[str, Any]
    skip_bad: bool
    tally: Tally

    def __call__(self, unit: list[Entry]) -> tuple[list[Row], np.ndarray, Part]:
        """The rows that have a vector, (rows, dim) float32, and the counts."""
        part = Part("", [], None)
        part.skipped.extend((e.index, e.id, e.reason) for e in unit if isinstance(e, BadRow))
        rows = [entry for entry in unit if isinstance(entry, Row)]
        rows, vectors, cut = self._encode(rows, part)
        good = np.isfinite(vectors).all(axis=1)
        for i in np.flatnonzero(~good).tolist():
            reason = (
                f"{self.source.name}, row {rows[i].index}: the vector is not finite in "
                f"{self.encoder.model.dtype}; float32 or bfloat16 reach further than float16"
            )
            if not self.skip_bad:
                raise PyencError(reason)
            part.skipped.append((rows[i].index, rows[i].id, reason))
        rows = [row for row, fine in zip(rows, good, strict=True) if fine]
        part.skipped.sort(key=lambda each: each[0])
        return rows, vectors[good], Part("", [], None, *cut, part.skipped)

    def _encode(self, rows: list[Row], part: Part) -> tuple[list[Row], np.ndarray, Cut]:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", TruncationWarning)
            try:
                vectors: np.ndarray = self.encoder.encode(
                    [row.text for row in rows], progress=False, **self.options
                )
            except InputError as error:
                if not self.skip_bad:
                    raise InputError(
                        f"{self.source.name}, rows {rows[0].index} to {rows[-1].index} (numbered "
                        f"from 0 as texts in what follows): {error}"
                    ) from error
                return self._by_halves(rows, part, error)
        cut = Cut()
        for warning in caught:
            if isinstance(warning.message, TruncationWarning):
                said = warning.message
                cut = Cut(said.count, said.longest, said.exact)
            else:
                self.tally.notes.add(f"{warning.category.__name__}: {warning.message}")
        return rows, vectors, cut

    def _by_halves(
        self, rows: list[Row], part: Part, error: InputError
    ) -> tuple[list[Row], np.ndarray, Cut]:
        """Texts are refused before the model runs, so finding the ones at fault costs little."""
        if len(rows) <= 1:
            for row in rows:
                reason = f"{self.source.name}, row {row.index}: {error}"
                part.skipped.append((row.index, row.id, reason))
            return [], self.encoder.encode([], progress=False, **self.options), Cut()
        half = len(rows) // 2
        a, b = self._encode(rows[:half], part), self._encode(rows[half:], part)
        return [*a[0], *b[0]], np.concatenate([a[1], b[1]]), a[2].and_then(b[2])
