"""Vectors in fewer bits: half precision, a byte a dimension, a bit a dimension.

Bytes and bits are those of sentence-transformers' `quantize_embeddings` (6.2.0). A byte is the
place of a value between the least and the greatest of its dimension, `floor((x - least) / step)`
with 255 steps between the two; an int8 is that less 128. A bit is `x > 0`, eight a byte, the first
dimension in the highest bit, zeros filling up the last byte; as "binary" the byte less 128.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from torch import Tensor

from ..callers import stacklevel
from ..errors import InputError, InputTypeError
from .arguments import check_many

DTYPES = {
    "float32": np.float32,
    "float16": np.float16,
    "int8": np.int8,
    "uint8": np.uint8,
    "binary": np.int8,
    "ubinary": np.uint8,
}
"""Of the numbers that are returned, by precision."""

RANGED = ("int8", "uint8")
"""Those that need to know between what values a dimension lies."""

FEW = 100
"""Vectors from which ranges are taken without a warning."""

STEPS = 255


class CalibrationWarning(UserWarning):
    """The ranges of int8 or uint8 were taken from few vectors."""


@dataclass(frozen=True)
class Precision:
    """What is made of vectors (n, dim)."""

    name: str = "float32"
    dim: int = 0
    ranges: np.ndarray | None = None  # (2, dim) float32
    calibration: np.ndarray | list[str] | None = None
    """Vectors (n, dim) or texts to take the ranges from."""

    @property
    def dtype(self) -> Any:
        return np.dtype(DTYPES[self.name])

    @property
    def columns(self) -> int:
        """Numbers of a vector of `dim` dimensions."""
        return -(-self.dim // 8) if self.name.endswith("binary") else self.dim

    @property
    def needs_ranges(self) -> bool:
        """Must they be found yet?"""
        return self.name in RANGED and self.ranges is None

    def of(self, vectors: np.ndarray) -> Precision:
        """The same with ranges, where it lacks them: those of `vectors` (n, dim)."""
        return replace(self, ranges=ranges_of(vectors, self.name)) if self.needs_ranges else self

    def __call__(self, vectors: np.ndarray, first: int = 0) -> np.ndarray:
        """(n, columns), from floats (n, dim); `first`: the number of the first, for messages.

        Raises:
            InputError: a vector is not finite, or is too large for the precision. Of float32 that
                stays so nothing is asked.
        """
        if self.name == "float32" and vectors.dtype == np.float32:
            return vectors
        _check_finite(vectors, first, "NaN and infinity have no place among them")
        if self.dtype.kind == "f":
            with np.errstate(over="ignore"):
                narrow = vectors.astype(self.dtype)
            _check_finite(narrow, first, f"{self.name} ends at {np.finfo(self.dtype).max:.5g}")
            return narrow
        if self.name.endswith("binary"):
            bits = np.packbits(vectors > 0, axis=-1)
            return _signed(bits) if self.name == "binary" else bits
        assert self.ranges is not None
        least, greatest = self.ranges
        step = (greatest - least) / np.float32(STEPS)
        step = np.where(step == 0, np.float32(1), step)  # a dimension that never changes
        places = np.clip(np.floor((vectors - least) / step), 0, STEPS).astype(np.uint8)
        return _signed(places) if self.name == "int8" else places


def quantize(
    vectors: np.ndarray | Tensor,
    precision: str,
    *,
    ranges: Any = None,
    calibration: Any = None,
) -> np.ndarray:
    """Vectors in another precision, after they were made: what `encode(precision=...)` does.

    Args:
        vectors: (n, dim) or (dim,), of floating point.
        precision: "float32", "float16", "int8", "uint8", "binary" or "ubinary".
        ranges: of int8 and uint8, (2, dim): the least and the greatest value of each dimension.
        calibration: vectors (m, dim) to take the ranges from; default: `vectors` themselves.

    Returns:
        (n, dim), or (n, ceil(dim / 8)) of the binary ones; without n where `vectors` has none.

    Warns:
        CalibrationWarning: the ranges are those of fewer than 100 vectors.

    Raises:
        InputTypeError: `vectors` or `calibration` are no numbers of floating point.
        InputError: a wrong shape, precision or value.
    """
    array = _floats("vectors", vectors)
    if array.ndim not in (1, 2):
        raise InputError(f"vectors must have shape (n, dim) or (dim,), got {array.shape}")
    if isinstance(calibration, (list, tuple)) and any(isinstance(c, str) for c in calibration):
        raise InputTypeError(
            "calibration of quantize takes vectors; encode(calibration=...) also takes texts"
        )
    chosen = checked_precision(precision, ranges, calibration, dim=array.shape[-1])
    if chosen.needs_ranges and isinstance(chosen.calibration, np.ndarray):
        chosen = chosen.of(chosen.calibration)
    rows = np.atleast_2d(array)
    if len(rows):
        chosen = chosen.of(rows)
    elif chosen.needs_ranges:
        return np.zeros((0, chosen.columns), dtype=chosen.dtype)
    made = chosen(rows)
    return made if array.ndim == 2 else made[0]


def ranges_of(vectors: np.ndarray, precision: str = "int8") -> np.ndarray:
    """The ranges of int8 and uint8: the least and the greatest value of each dimension.

    Args:
        vectors: (n, dim), at least two, better thousands like those to come.
        precision: for messages.

    Returns:
        (2, dim) float32.

    Warns:
        CalibrationWarning: there are fewer than 100.

    Raises:
        InputError: there are fewer than two, one is not finite, or they are too far apart.
    """
    array = np.atleast_2d(_floats("calibration", vectors))
    if len(array) < 2:
        raise InputError(
            f"{precision} needs the range of each dimension, which {len(array)} vectors do not "
            "have; give ranges= (2, dim), or calibration= with vectors or texts like those to come"
        )
    _check_finite(array, 0, "they give no ranges")
    if len(array) < FEW:
        warnings.warn(
            CalibrationWarning(
                f"the ranges of {precision} are those of {len(array)} vectors alone; from at least "
                f"{FEW} (calibration=, ranges=) they are steadier, and the same from call to call"
            ),
            stacklevel=stacklevel(),
        )
    return _in_float32("calibration", np.stack([array.min(axis=0), array.max(axis=0)]))


def checked_precision(
    precision: Any, ranges: Any, calibration: Any, *, dim: int, output: str = "pooled"
) -> Precision:
    """What the arguments ask for.

    Args:
        precision, ranges, calibration: of `TextEncoder.encode`.
        dim: dimensions of a vector.
        output: of `TextEncoder.encode`.

    Raises:
        InputError: an unknown precision, ranges of a wrong shape or without an int8 that needs
            them, both ways to give them, or a precision asked of token states.
        InputTypeError: ranges or calibration are not made of numbers (or texts).
    """
    if not isinstance(precision, str) or precision not in DTYPES:
        raise InputError(f"precision must be one of {', '.join(DTYPES)}, got {precision!r}")
    if output != "pooled" and precision != "float32":
        raise InputError(f'precision {precision!r} is of pooled vectors, not of output="{output}"')
    given = {"ranges": ranges, "calibration": calibration}
    names = [name for name, value in given.items() if value is not None]
    if len(names) > 1:
        raise InputError("give one of ranges and calibration, not both")
    if names and precision not in RANGED:
        raise InputError(f"{names[0]} is of {' and '.join(RANGED)}, not of {precision!r}")
    chosen = Precision(precision, dim)
    if ranges is not None:
        return replace(chosen, ranges=_checked_ranges(ranges, dim))
    if calibration is None:
        return chosen
    if isinstance(calibration, np.ndarray) and calibration.ndim and calibration.dtype.kind in "OU":
        calibration = calibration.tolist()
    if not isinstance(calibration, (np.ndarray, Tensor)):
        check_many(calibration, "calibration must be many texts or an array of vectors")
        calibration = list(calibration)
        other = [i for i, text in enumerate(calibration) if not isinstance(text, str)]
        if not other:
            return replace(chosen, calibration=calibration)
        if len(other) < len(calibration):
            text = calibration[other[0]]
            raise InputTypeError(
                f"calibration must be many texts or an array of vectors: text {other[0]} is "
                f"{text!r:.40} ({type(text).__name__}), expected a string"
            )
    vectors = _floats("calibration", calibration)
    if vectors.ndim != 2 or vectors.shape[1] != dim:
        raise InputError(f"calibration must have shape (n, {dim}), got {vectors.shape}")
    return replace(chosen, calibration=vectors)


def _checked_ranges(ranges: Any, dim: int) -> np.ndarray:
    array = _floats("ranges", ranges)
    if array.shape != (2, dim):
        raise InputError(
            f"ranges must have shape (2, {dim}), the least and the greatest value of each "
            f"dimension, got {array.shape}"
        )
    for row, column in np.argwhere(~np.isfinite(array))[:1]:
        raise InputError(
            f"ranges: the {('least', 'greatest')[row]} value of dimension {column} is "
            f"{array[row, column]}, which is not finite"
        )
    wrong = np.flatnonzero(array[0] > array[1])
    if len(wrong):
        raise InputError(
            f"ranges: of dimension {wrong[0]} the least value, {array[0, wrong[0]]}, is above the "
            f"greatest, {array[1, wrong[0]]}"
        )
    return _in_float32("ranges", array)


def _in_float32(name: str, ranges: np.ndarray) -> np.ndarray:
    """Ranges (2, dim) with steps between their ends that are numbers."""
    with np.errstate(over="ignore", invalid="ignore"):
        least, greatest = both = ranges.astype(np.float32)
        wrong = np.flatnonzero(~np.isfinite(greatest - least))
    if len(wrong):
        at = wrong[0]
        raise InputError(
            f"{name}: the values of dimension {at} lie between {ranges[0, at]} and "
            f"{ranges[1, at]}, which is further apart than float32 has numbers"
        )
    return both


def _floats(name: str, values: Any) -> np.ndarray:
    """An array of floating point, whatever it came as."""
    if isinstance(values, Tensor):
        values = values.detach().cpu()
        # numpy has no bfloat16.
        values = values.float() if values.is_floating_point() and values.itemsize < 4 else values
    try:
        array = np.asarray([np.asarray(v) for v in values] if isinstance(values, list) else values)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputTypeError(f"{name} must be an array of numbers: {error}") from error
    if array.dtype.kind != "f":
        raise InputTypeError(f"{name} must be of floating point, got {array.dtype}")
    return array


def _check_finite(vectors: np.ndarray, first: int, why: str) -> None:
    good = np.isfinite(vectors).all(axis=-1)
    if not good.all():
        row = first + int(np.flatnonzero(~np.atleast_1d(good))[0])
        raise InputError(f"vector {row} is not finite: {why}")


def _signed(values: np.ndarray) -> np.ndarray:
    """uint8 less 128, as int8: the highest bit turned over."""
    return (values ^ np.uint8(128)).view(np.int8)
