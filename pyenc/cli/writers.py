"""Finished parts to one .npy, .jsonl or .parquet, part by part, moved into place at the end."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np

from .parts import Part, Parts
from .readers import need_pyarrow


def write(parts: Parts, output: Path, dim: int, with_ids: bool) -> None:
    """Put the parts together in the working folder, then replace `output` in one step.

    Args:
        parts: all of them finished.
        output: its suffix says the format.
        dim: length of the vectors, for an output without rows.
        with_ids: whether rows carry an id.
    """
    WRITERS[output.suffix.lower()](parts, dim, with_ids)
    with open(parts.output, "rb+") as file:
        os.fsync(file.fileno())
    parts.output.replace(output)


def _write_npy(parts: Parts, dim: int, with_ids: bool) -> None:
    rows = sum(len(parts.part(number).rows) for number in range(parts.count))
    header = {"descr": "<f4", "fortran_order": False, "shape": (rows, dim)}
    with open(parts.output, "wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        for number in range(parts.count):
            file.write(parts.vectors(number, dim).astype("<f4", copy=False).tobytes())


def _write_jsonl(parts: Parts, dim: int, with_ids: bool) -> None:
    with open(parts.output, "w", encoding="utf-8", newline="\n") as file:
        for number in range(parts.count):
            part = parts.part(number)
            for place, values in enumerate(parts.vectors(number, dim).tolist()):
                named = f'"index": {part.rows[place]}, '
                if part.ids is not None:
                    named += f'"id": {json.dumps(part.ids[place], ensure_ascii=False)}, '
                # Nine digits are what a float32 needs to come back the same.
                numbers = ", ".join(["%.9g" % value for value in values])  # noqa: UP031  (faster)
                file.write(f'{{{named}"embedding": [{numbers}]}}\n')


def _write_parquet(parts: Parts, dim: int, with_ids: bool) -> None:
    arrow = need_pyarrow(parts.output)
    names, types = ["index"], [arrow.int64()]
    if with_ids:
        first = parts.part(0) if parts.count else Part("", [], None)
        whole = bool(first.ids) and isinstance((first.ids or [""])[0], int)
        names, types = ["index", "id"], [arrow.int64(), arrow.int64() if whole else arrow.string()]
    embedding = arrow.list_(arrow.float32(), dim)
    schema = arrow.schema([*zip(names, types, strict=True), ("embedding", embedding)])
    # Random-looking floats gain nothing from a dictionary.
    with arrow.parquet.ParquetWriter(parts.output, schema, use_dictionary=["id"]) as writer:
        for number in range(parts.count):
            part = parts.part(number)
            columns = [arrow.array(part.rows, arrow.int64())]
            if with_ids:
                columns.append(arrow.array(part.ids, types[1]))
            flat = arrow.array(parts.vectors(number, dim).reshape(-1), arrow.float32())
            columns.append(arrow.FixedSizeListArray.from_arrays(flat, dim))
            writer.write_table(arrow.Table.from_arrays(columns, schema=schema))


WRITERS: dict[str, Callable[[Parts, int, bool], None]] = {
    ".npy": _write_npy,
    ".jsonl": _write_jsonl,
    ".parquet": _write_parquet,
}
"""By the suffix of the output."""
