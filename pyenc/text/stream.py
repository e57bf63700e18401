"""Texts without end: taken a few batches at a time, their vectors given in the same order."""

from __future__ import annotations

import warnings
from collections import deque
from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..callers import stacklevel
from ..errors import InputError
from ..forking import check_forked
from .arguments import Texts, check_many, checked_texts, whole
from .encoding import Prepared, Results, Start, Starting, calibrated, collect, finished, place_of
from .encoding import prepare as prepared_of
from .limits import Overlong, TruncationWarning
from .loaded import Loaded
from .options import Call, Options, checked_call

UNIT_BATCHES = 4
"""Batches of tokens in a unit, about: enough for texts of like length to share one."""
UNIT_CHARACTERS = 4_000_000
UNIT_BYTES = 1 << 26
"""Of texts, and of the vectors or states made of them, at the most (but for a single text)."""
BYTES_A_TOKEN = 4
"""Of UTF-8, about, in any script; tokens are estimated, for tokenising twice would cost more."""
LEAST_TOKENS = 4
"""A text is taken for at least so many: empty ones fill memory too."""


@dataclass(frozen=True)
class _Unit:
    """Texts that are tokenised together."""

    first: int
    """The number of the first."""
    texts: Texts


def stream(
    encoder: Loaded,
    texts: Any,
    options: Options,
    starting: Starting,
    block: Any = None,
    task: Any = None,
) -> Iterator[Any]:
    """What `TextEncoder.encode_stream` gives, which explains it."""
    check_forked()
    check_many(texts, "texts of encode_stream must be an iterable of strings")
    if task not in (None, "query", "document"):
        raise InputError(f'task must be "query" or "document", got {task!r}')
    if block is not None and (block := whole("block", block)) < 1:
        raise InputError(f"block must be at least 1, got {block}")
    encoder.needed_tokenizer()
    call = checked_call(encoder, options, task)
    call.before(None, encoder)  # where pairs bring their own, it is refused when they come
    if call.precision.needs_ranges and call.precision.calibration is None:
        raise InputError(
            f"{call.precision.name} of a stream needs ranges= or calibration=: taken from the "
            "texts that happen to be at hand, they would differ along the way"
        )
    vectors = _vectors(encoder, iter(texts), call, starting)
    return _one_by_one(vectors) if block is None else _blocks(vectors, block)


def _vectors(
    encoder: Loaded, texts: Iterator[Any], call: Call, starting: Starting
) -> Generator[Any, None, None]:
    """Arrays (n, dim) or lists of token vectors, unit by unit."""
    units = _units(texts, encoder, call)
    waiting: deque[tuple[_Unit, Prepared, Results]] = deque()
    tally = _Tally()
    with starting as start:
        try:
            precision = calibrated(encoder, call, start)
            fault: Exception | None = None
            more = True
            while True:
                while more and len(waiting) <= start.ahead:
                    try:
                        more = _begin(encoder, next(units, None), call, start, waiting, tally)
                    except Exception as error:  # told when its turn has come
                        fault, more = error, False
                if not waiting:
                    break
                unit, prepared, results = waiting.popleft()
                with closing(results):
                    made: Any = collect(prepared, results, place_of(encoder, call))
                if isinstance(made, Tensor):
                    made = finished(made, precision, encoder, call, unit.first)
                yield made
            if fault is not None:
                raise fault
        finally:
            for _, _, results in waiting:
                results.close()
            tally.tell()


def _begin(
    encoder: Loaded,
    unit: _Unit | None,
    call: Call,
    start: Start,
    waiting: deque[tuple[_Unit, Prepared, Results]],
    tally: _Tally,
) -> bool:
    """Set about a unit; whether there was one."""
    if unit is None:
        return False
    prepared = prepared_of(encoder, unit.texts, call, unit.first)
    tally.add(prepared.overlong, call.options.on_long)
    waiting.append((unit, prepared, start(prepared)))
    return True


def _units(texts: Iterator[Any], encoder: Loaded, call: Call) -> Iterator[_Unit]:
    """Texts by the unit: cut by their length alone. What is wrong with one is said after the unit
    of those before it."""
    budget = UNIT_BATCHES * call.batch_tokens
    row = 4 * call.finish.dim
    unit: list[Any] = []
    first = characters = tokens = size = 0
    example: Any = None
    while True:
        fault: Exception | None = None
        try:
            text = next(texts)
        except StopIteration:
            break
        except Exception as error:
            fault, text = error, ""
        index = first + len(unit)
        if fault is None:
            example = text if index == 0 else example
            fault = _fault(text, index, example)
        if fault is not None:
            if unit:
                yield _Unit(first, checked_texts(unit, first))
            raise fault
        unit.append(text)
        length, estimate = _size(text, call.limit)
        characters, tokens = characters + length, tokens + estimate
        size += row * estimate if call.output == "tokens" else row
        if tokens >= budget or characters >= UNIT_CHARACTERS or size >= UNIT_BYTES:
            yield _Unit(first, checked_texts(unit, first))
            first = first + len(unit)
            unit, characters, tokens, size = [], 0, 0, 0
    if unit:
        yield _Unit(first, checked_texts(unit, first))


def _fault(text: Any, index: int, example: Any) -> Exception | None:
    """What is wrong with a text, among others like `example`."""
    try:
        pairs = isinstance(example, (list, tuple))
        if isinstance(text, (list, tuple)) != pairs and index:
            checked_texts([example, text], index - 1)
        listed, _ = checked_texts([text], index)
        listed[0].encode("utf-8")
    except UnicodeEncodeError as error:
        return InputError(
            f"text {index} is not valid Unicode: lone surrogate {error.object[error.start]!r} at "
            f"character {error.start}"
        )
    except InputError as error:
        return error
    return None


def _size(text: Any, limit: int) -> tuple[int, int]:
    """Characters, and tokens about."""
    parts = [text] if isinstance(text, str) else list(text)
    characters = sum(map(len, parts))
    # More characters than that are cut off, whatever they are.
    known = sum(len(part[: 16 * limit].encode("utf-8", "replace")) for part in parts)
    return characters, min(limit, LEAST_TOKENS + known // BYTES_A_TOKEN)


class _Tally:
    """Texts that were cut: told at the first, and at the end."""

    def __init__(self) -> None:
        self._all: Overlong | None = None
        self._told = 0

    def add(self, overlong: Overlong, on_long: str) -> None:
        if on_long == "error":
            overlong.report(on_long)
        self._all = overlong if self._all is None else self._all.and_then(overlong)
        if overlong.count and not self._told:
            self._told = 1  # of them the message names the first alone
            message = (
                f"text {overlong.first} exceeds {overlong.limit} tokens and was truncated; how "
                "many more there are is said at the end of the stream"
            )
            warning = TruncationWarning(message, overlong.count, overlong.most, overlong.exact)
            warnings.warn(warning, stacklevel=stacklevel())

    def tell(self) -> None:
        if self._all is not None and self._all.count > self._told:
            self._all.report("truncate")


def _one_by_one(parts: Generator[Any, None, None]) -> Iterator[Any]:
    with closing(parts):
        for part in parts:
            for row in part:
                # Not a view: whoever keeps one vector would keep them all.
                yield row if isinstance(row, tuple) else _copy(row)


def _blocks(parts: Generator[Any, None, None], block: int) -> Iterator[Any]:
    with closing(parts):
        kept: Any = None
        for part in parts:
            kept = part if kept is None else _joined(kept, part)
            start = 0
            while len(kept) - start >= block:
                yield _copy(kept[start : start + block])
                start += block
            kept = _copy(kept[start:])
        if kept is not None and len(kept):
            yield kept


def _copy(values: Any) -> Any:
    return values.clone() if isinstance(values, Tensor) else values.copy()


def _joined(a: Any, b: Any) -> Any:
    if isinstance(a, list):
        return a + b
    return torch.cat([a, b]) if isinstance(a, Tensor) else np.concatenate([a, b])
