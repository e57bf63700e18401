"""Ray: `Embed`, a class for `ray.data.Dataset.map_batches`, a model an actor."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InputError, InputTypeError
from ..text import TextEncoder
from .embedding import PROMPT_NAMES, embed, encode_options, encoder_of, options_nearest
from .missing import needs

with needs("ray"):
    # What this stands on: where it lacks, that is said here and not by a worker.
    import pyarrow as pa
    import ray.data  # noqa: F401

ON_NULL = ("error", "drop", "null")


class Embed:
    """Adds a column of vectors to each batch of a Ray data set.

    >>> vectors = ray.data.read_parquet(FROM).map_batches(
    ...     Embed,
    ...     fn_constructor_args=("jinaai/jina-embeddings-v2-small-en",),
    ...     fn_constructor_kwargs={"text": "body"},
    ...     batch_format="pyarrow",
    ...     batch_size=1024,
    ...     compute=ray.data.ActorPoolStrategy(size=4),
    ...     num_gpus=1,  # or num_cpus=8: torch's threads are those that Ray grants
    ... )
    >>> vectors.write_parquet(TO)

    Every actor loads the model once. Inside, texts go into batches by tokens; the rows of a batch
    stay in their order. Vectors are float32: in "pyarrow" batches a column of fixed-size lists,
    which Parquet's other readers know, in "numpy" ones an array (rows, dim), in "pandas" ones an
    array a row.

    Args:
        model: a folder that every node sees, or a Hub name; a `TextEncoder` travels with its
            weights.
        text: the column that is embedded.
        vector: the column that is added.
        kind: whose prompt of the checkpoint is used: "document" or "query"; None: its default one.
        on_null: what becomes of a row whose text is null: "error"; "drop": the row is left out;
            "null": so is its vector ("pyarrow" and "pandas" batches).
        model_kwargs: of `pyenc.load`.
        encode_kwargs: of `TextEncoder.encode`.

    Raises:
        MissingPackageError: Ray is not installed (as this module is imported).
        InputError: an argument is out of range.
        PyencError: what `pyenc.load` has against the model.
    """

    @options_nearest
    def __init__(
        self,
        model: TextEncoder | str | Path,
        *,
        text: str = "text",
        vector: str = "vector",
        kind: str | None = "document",
        on_null: str = "error",
        model_kwargs: Mapping[str, Any] | None = None,
        encode_kwargs: Mapping[str, Any] | None = None,
    ) -> None:
        if on_null not in ON_NULL:
            raise InputError(f"on_null must be one of {', '.join(ON_NULL)}, got {on_null!r}")
        if kind is not None and kind not in PROMPT_NAMES:
            raise InputError(
                f"kind must be one of {', '.join(PROMPT_NAMES)}, or None, got {kind!r}"
            )
        self.text = text
        self.vector = vector
        self.kind = kind
        self.on_null = on_null
        self.encode_kwargs = encode_options(encode_kwargs)
        self.encoder = encoder_of(model, model_kwargs)

    def __call__(self, batch: Any) -> Any:
        """The batch with its vectors.

        Args:
            batch: a `pyarrow.Table`, a `pandas.DataFrame`, or arrays by column.

        Raises:
            InputError: the column of texts is missing, that of vectors is there already, or a text
                is null or no string: the message names column and row.
        """
        form = _form_of(batch)
        names = form.names(batch)
        if self.text not in names:
            raise InputError(
                f"there is no column {self.text!r}; the batch has: {', '.join(map(str, names))}"
            )
        if self.vector in names:
            raise InputError(f"there is a column {self.vector!r} already; vector=... names another")
        texts = form.values(batch, self.text)
        null = np.array([_is_null(text) for text in texts], dtype=bool)
        for row, text in enumerate(texts):
            if null[row] and self.on_null == "error":
                raise InputError(
                    f"column {self.text!r} is null in {form.place(batch, row, self.text)}; "
                    "on_null='drop' leaves such rows out, on_null='null' their vectors"
                )
            if not null[row] and not isinstance(text, str):
                raise InputTypeError(
                    f"column {self.text!r} is {text!r:.40} ({type(text).__name__}), expected a "
                    f"string, in {form.place(batch, row, self.text)}"
                )
        if self.on_null == "drop" and null.any():
            batch = form.kept(batch, ~null)
            texts, null = [text for text in texts if isinstance(text, str)], null[~null]
        found = self._embed([text for text in texts if isinstance(text, str)])
        if not null.any():
            return form.added(batch, self.vector, found, None)
        vectors = np.zeros((len(texts), found.shape[1]), found.dtype)
        vectors[~null] = found
        return form.added(batch, self.vector, vectors, null)

    def _embed(self, texts: list[str]) -> np.ndarray:
        return embed(self.encoder, self.kind, texts, self.encode_kwargs)


class _Arrays:
    """Arrays by column, which is what Ray calls "numpy"."""

    @staticmethod
    def names(batch: Any) -> list[str]:
        return list(batch)

    @staticmethod
    def values(batch: Any, name: str) -> list[Any]:
        column = np.asarray(batch[name], dtype=object)
        if column.ndim == 0:
            raise InputTypeError(
                f"column {name!r} is one value, {batch[name]!r:.40}, and no array of them: Embed "
                "is for Dataset.map_batches, and not for map"
            )
        return list(column)

    @classmethod
    def place(cls, batch: Any, row: int, text: str) -> str:
        """Which row that is, by what its other columns hold."""
        others = [name for name in cls.names(batch) if name != text]
        told = ", ".join(f"{name}={cls.values(batch, name)[row]!r:.40}" for name in others[:4])
        return f"row {row} of the batch" + (f" ({told})" if told else "")

    @staticmethod
    def kept(batch: Any, keep: np.ndarray) -> Any:
        return {name: np.asarray(column)[keep] for name, column in batch.items()}

    @staticmethod
    def added(batch: Any, name: str, vectors: np.ndarray, null: np.ndarray | None) -> Any:
        if null is not None:
            raise InputError(
                "on_null='null': an array of vectors has no nulls; give map_batches "
                "batch_format='pyarrow'"
            )
        return {**batch, name: vectors}


class _Table(_Arrays):
    """A `pyarrow.Table`."""

    @staticmethod
    def names(batch: Any) -> list[str]:
        return list(batch.column_names)

    @staticmethod
    def values(batch: Any, name: str) -> list[Any]:
        values: list[Any] = batch.column(name).to_pylist()
        return values

    @staticmethod
    def kept(batch: Any, keep: np.ndarray) -> Any:
        return batch.filter(pa.array(keep))

    @staticmethod
    def added(batch: Any, name: str, vectors: np.ndarray, null: np.ndarray | None) -> Any:
        mask = None if null is None else pa.array(null)
        flat = pa.array(vectors.ravel())
        column = pa.FixedSizeListArray.from_arrays(flat, vectors.shape[1], mask=mask)
        return batch.append_column(name, column)


class _Frame(_Arrays):
    """A `pandas.DataFrame`."""

    @staticmethod
    def names(batch: Any) -> list[str]:
        return list(batch.columns)

    @staticmethod
    def values(batch: Any, name: str) -> list[Any]:
        return list(batch[name])

    @staticmethod
    def kept(batch: Any, keep: np.ndarray) -> Any:
        return batch[keep]

    @staticmethod
    def added(batch: Any, name: str, vectors: np.ndarray, null: np.ndarray | None) -> Any:
        rows = list(vectors)
        if null is not None:
            rows = [None if none else row for row, none in zip(rows, null, strict=True)]
        return batch.assign(**{name: rows})


def _form_of(batch: Any) -> type[_Arrays]:
    if isinstance(batch, pa.Table):
        return _Table
    if isinstance(batch, Mapping):
        return _Arrays
    if hasattr(batch, "columns") and hasattr(batch, "assign"):
        return _Frame
    raise InputTypeError(
        f"a batch must be a pyarrow.Table, a pandas.DataFrame or arrays by column, got "
        f"{type(batch).__name__}; Embed is for Dataset.map_batches"
    )


def _is_null(value: Any) -> bool:
    """None, or what pandas and numpy have in its place."""
    missing = value is None or type(value).__name__ in ("NAType", "NaTType")
    return missing or (isinstance(value, float) and math.isnan(value))
