"""Texts from a column of a Parquet file, whatever string type of Arrow's it comes back as."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from ..errors import InputError
from .rows import BadRow, Fields, Meter, Row

BATCH_ROWS = 1024
"""Rows decoded at a time, at the most."""
BATCH_BYTES = 1 << 24
"""Bytes decoded at a time, about: long texts come in fewer rows."""


def need_pyarrow(path: Path | IO[bytes] | str) -> Any:
    """The optional package behind .parquet.

    Raises:
        InputError: it is not installed.
    """
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise InputError(f"{path}: .parquet needs pyarrow: pip install 'pyenc[parquet]'") from error
    return pyarrow


def check_columns(file: Path | IO[bytes], source: Fields) -> None:
    """Refuse a file without the columns, or with columns of another type."""
    arrow = need_pyarrow(source.name)
    with _reading(source.name), _opened(file, source) as parquet:
        schema = parquet.schema_arrow
    for name, whole_numbers in ((source.field, False), (source.id_field, True)):
        if name is None:
            continue
        places = schema.get_all_field_indices(name)
        if not places:
            raise InputError(
                f"{source.name}: no column {name!r}; it has {', '.join(schema.names) or 'none'}"
            )
        if len(places) > 1:
            raise InputError(
                f"{source.name}: {len(places)} columns are named {name!r}; rename all but one"
            )
        kind = schema.field(places[0]).type
        if not _fits(arrow, kind, whole_numbers):
            wanted = "strings or whole numbers (signed)" if whole_numbers else "strings"
            hint = "; it holds nulls alone" if arrow.types.is_null(kind) else ""
            raise InputError(f"{source.name}: column {name!r} is {kind}, expected {wanted}{hint}")


def count_rows(file: Path | IO[bytes], source: Fields) -> int:
    """Rows in all."""
    with _reading(source.name), _opened(file, source) as parquet:
        return int(parquet.metadata.num_rows)


def parquet_rows(file: Path | IO[bytes], source: Fields, meter: Meter) -> Iterator[Row | BadRow]:
    """A text a row."""
    columns = list(
        dict.fromkeys(name for name in (source.field, source.id_field) if name is not None)
    )
    index = 0
    # Closed by hand: a `with` around a yield would take the caller's errors for the file's.
    with contextlib.ExitStack() as stack:
        with _reading(source.name):
            parquet = stack.enter_context(_opened(file, source))
            batches = parquet.iter_batches(_batch_rows(parquet), columns=columns)
        while True:
            with _reading(f"{source.name}, row {index} or later"):
                batch = next(batches, None)
                if batch is None:
                    return
                texts = _values(batch, source.field)
                ids = _values(batch, source.id_field) if source.id_field is not None else None
            for place, text in enumerate(texts):
                meter.done += 1
                yield _row(index, text, None if ids is None else ids[place], source)
                index += 1


def _row(index: int, text: Any, identity: Any, source: Fields) -> Row | BadRow:
    where = f"{source.name}, row {index}"
    known = None if isinstance(identity, UnicodeDecodeError) else identity
    for value, name in ((text, source.field), (identity, source.id_field)):
        if name is None:
            continue
        if value is None:
            return BadRow(index, known, f"{where}: column {name!r} is null")
        if isinstance(value, UnicodeDecodeError):
            return BadRow(index, known, f"{where}: column {name!r} cannot be read: {value}")
    return Row(index, identity, text)


def _values(batch: Any, name: str) -> list[Any]:
    """The values of a column; of one that is no UTF-8 the error."""
    column = batch.column(name)
    try:
        values: list[Any] = column.to_pylist()
        return values
    except UnicodeDecodeError:
        return [_value(scalar) for scalar in column]


def _value(scalar: Any) -> Any:
    try:
        return scalar.as_py()
    except UnicodeDecodeError as error:
        return error


def _batch_rows(parquet: Any) -> int:
    """Rows of a batch, so that texts of megabytes do not come by the thousand."""
    metadata = parquet.metadata
    worst = 1.0
    for number in range(metadata.num_row_groups):
        # Of all columns: to ask a chunk that is encrypted for its size ends the process.
        group = metadata.row_group(number)
        worst = max(worst, group.total_byte_size / max(group.num_rows, 1))
    return max(1, min(BATCH_ROWS, int(BATCH_BYTES / worst)))


def _fits(arrow: Any, kind: Any, whole_numbers: bool) -> bool:
    types = arrow.types
    while True:  # a dictionary's or a run's values, what stands under an extension such as JSON
        if types.is_dictionary(kind) or types.is_run_end_encoded(kind):
            kind = kind.value_type
        elif isinstance(kind, arrow.BaseExtensionType):
            kind = kind.storage_type
        else:
            break
    if types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind):
        return True
    return whole_numbers and bool(types.is_integer(kind) and not types.is_uint64(kind))


def _opened(file: Path | IO[bytes], source: Fields) -> Any:
    arrow = need_pyarrow(source.name)
    if not isinstance(file, Path):
        file.seek(0)
        # A wrapper of its own, so that closing it leaves the stream open.
        return arrow.parquet.ParquetFile(arrow.PythonFile(_Kept(file), mode="r"))
    return arrow.parquet.ParquetFile(file)


class _Kept:
    """A file that stays open when Arrow closes it."""

    closed = False

    def __init__(self, file: IO[bytes]) -> None:
        self.read, self.seek, self.tell = file.read, file.seek, file.tell

    def close(self) -> None: ...

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True


@contextlib.contextmanager
def _reading(where: str) -> Iterator[None]:
    """Whatever pyarrow raises over a damaged file is the file's fault, in one line.

    Its own classes, OSError, and what its Python part runs into on metadata that make no sense.
    """
    try:
        yield
    except (InputError, KeyboardInterrupt):
        raise
    except Exception as error:
        story = " ".join(str(error).split()) or type(error).__name__
        hint = ": it is encrypted" if "crypt" in story.lower() else ""
        raise InputError(f"{where}: not a readable parquet file{hint}: {story:.300}") from error
