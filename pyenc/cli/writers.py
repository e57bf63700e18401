"""Finished parts to one .npy, .jsonl or .parquet, part by part, moved into place at the end."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InputError
from .files import writing
from .parquet import need_pyarrow
from .parts import Parts
from .vectors import write_header, write_values

Dtype = np.dtype[Any]


def skipped_beside(output: Path) -> Path:
    """Where the rows left out of an output are listed."""
    return output.with_name(output.name + ".skipped.jsonl")


def ranges_beside(output: Path) -> Path:
    """Where the ranges of an output in int8 or uint8 are kept."""
    return output.with_name(output.name + ".ranges.npy")


def write(parts: Parts, output: Path, dim: int, with_ids: bool, dtype: Any = np.float32) -> None:
    """Put the parts together in the working folder, then replace `output` in one step.

    The list of the rows left out, where there are any, is in place before, and so are ranges: who
    finds an output finds them too.

    Args:
        parts: all of them finished.
        output: its suffix says the format.
        dim: length of the vectors, for an output without rows.
        with_ids: whether rows carry an id.
        dtype: of the numbers in them.
    """
    WRITERS[output.suffix.lower()](parts, dim, with_ids, np.dtype(dtype))
    beside = skipped_beside(output)
    if _write_skipped(parts):
        parts.skipped.replace(beside)
    else:
        beside.unlink(missing_ok=True)  # that of the output being replaced
    if parts.ranges.exists():
        parts.ranges.replace(ranges_beside(output))
    else:
        ranges_beside(output).unlink(missing_ok=True)
    parts.output.replace(output)


def _write_skipped(parts: Parts) -> int:
    """{"row": ..., "id": ..., "reason": ...} a line; how many."""
    written = 0
    for number in range(parts.count):
        written += len(parts.part(number).skipped)
    if not written:
        return 0
    with writing(parts.skipped) as file:
        for number in range(parts.count):
            for row, identity, reason in parts.part(number).skipped:
                # ASCII: a reason may quote half a surrogate pair.
                line = json.dumps({"row": row, "id": identity, "reason": reason})
                file.write(line.encode() + b"\n")
    return written


def _write_npy(parts: Parts, dim: int, with_ids: bool, dtype: Dtype) -> None:
    rows = sum(len(parts.part(number).rows) for number in range(parts.count))
    with writing(parts.output) as file:
        write_header(file, rows, dim, dtype)
        for number in range(parts.count):
            write_values(file, parts.vectors(number, dim, dtype))


def _write_jsonl(parts: Parts, dim: int, with_ids: bool, dtype: Dtype) -> None:
    # Nine digits are what a float32 needs to come back the same, five a float16.
    form = "%d" if dtype.kind in "iu" else f"%.{9 if dtype.itemsize == 4 else 5}g"
    with writing(parts.output) as file:
        for number in range(parts.count):
            part = parts.part(number)
            for place, values in enumerate(parts.vectors(number, dim, dtype).tolist()):
                named = f'"index": {part.rows[place]}, '
                if part.ids is not None:
                    named += f'"id": {json.dumps(part.ids[place], ensure_ascii=False)}, '
                numbers = ", ".join([form % value for value in values])
                file.write(f'{{{named}"embedding": [{numbers}]}}\n'.encode())


ROW_GROUP = 16_384
"""Rows of a row group of .parquet: whatever the clock made of the parts, the file is the same."""


def _write_parquet(parts: Parts, dim: int, with_ids: bool, dtype: Dtype) -> None:
    arrow = need_pyarrow(parts.output)
    number_type = arrow.from_numpy_dtype(dtype)
    names, types = ["index"], [arrow.int64()]
    if with_ids:
        names, types = ["index", "id"], [arrow.int64(), _type_of_ids(parts, arrow)]
    embedding = arrow.list_(number_type, dim)
    schema = arrow.schema([*zip(names, types, strict=True), ("embedding", embedding)])
    # Random-looking floats gain nothing from a dictionary.
    # A file of Python's, so that its errors of the disk are Python's.
    with (
        writing(parts.output) as file,
        arrow.parquet.ParquetWriter(file, schema, use_dictionary=["id"]) as writer,
    ):
        waiting: list[Any] = []
        for number in range(parts.count):
            part = parts.part(number)
            columns = [arrow.array(part.rows, arrow.int64())]
            if with_ids:
                try:
                    columns.append(arrow.array(part.ids, types[1]))
                except (arrow.ArrowException, OverflowError, TypeError) as error:
                    raise InputError(
                        f"{parts.folder}: ids of part {number} are damaged; use --overwrite"
                    ) from error
            flat = arrow.array(parts.vectors(number, dim, dtype).reshape(-1), number_type)
            columns.append(arrow.FixedSizeListArray.from_arrays(flat, dim))
            waiting.append(arrow.Table.from_arrays(columns, schema=schema))
            while sum(map(len, waiting)) >= ROW_GROUP:
                rows = arrow.concat_tables(waiting)
                writer.write_table(rows.slice(0, ROW_GROUP).combine_chunks())
                waiting = [rows.slice(ROW_GROUP)]
        if sum(map(len, waiting)):
            writer.write_table(arrow.concat_tables(waiting).combine_chunks())


def _type_of_ids(parts: Parts, arrow: Any) -> Any:
    """As the first id is; the parts before it may hold bad rows alone."""
    for number in range(parts.count):
        ids = parts.part(number).ids
        if ids:
            return arrow.int64() if isinstance(ids[0], int) else arrow.string()
    return arrow.string()


WRITERS: dict[str, Callable[[Parts, int, bool, Dtype], None]] = {
    ".npy": _write_npy,
    ".jsonl": _write_jsonl,
    ".parquet": _write_parquet,
}
"""By the suffix of the output."""
