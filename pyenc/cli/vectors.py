"""Vectors in .npy files: written so that a full disk is an error of its own, read with distrust."""

from __future__ import annotations

import hashlib
import math
import os
from pathlib import Path
from typing import IO, Any

import numpy as np

from ..errors import InputError


def write_header(file: IO[bytes], rows: int, dim: int, dtype: Any = np.float32) -> None:
    """The head of a .npy (rows, dim); the values follow."""
    header = {"descr": _stored(dtype).str, "fortran_order": False, "shape": (rows, dim)}
    np.lib.format.write_array_header_1_0(file, header)


def write_values(file: IO[bytes], vectors: np.ndarray) -> None:
    """Values behind a head; `numpy.save` would lose the number of the system's error."""
    file.write(_bytes(vectors))


def values_hash(vectors: np.ndarray) -> str:
    """sha256 of values as they are written."""
    return hashlib.sha256(_bytes(vectors)).hexdigest()


def _bytes(vectors: np.ndarray) -> bytes:
    return np.ascontiguousarray(vectors, dtype=_stored(vectors.dtype)).tobytes()


def _stored(dtype: Any) -> np.dtype[Any]:
    """The same dtype, lowest byte first."""
    return np.dtype(dtype).newbyteorder("<")


def read_array(path: Path) -> np.ndarray:
    """The array of a .npy file.

    Raises:
        InputError: it is none, is cut short, or holds objects; the message names the file.
        OSError: it cannot be opened.
    """
    formats = np.lib.format
    with open(path, "rb") as file:
        try:
            version = formats.read_magic(file)
            read = formats.read_array_header_1_0 if version == (1, 0) else None
            read = read or formats.read_array_header_2_0
            shape, _, dtype = read(file)
            if dtype.hasobject:
                raise ValueError("it holds Python objects")
            # Before numpy asks for the memory that a damaged head speaks of.
            needed, there = math.prod(shape) * dtype.itemsize, os.fstat(file.fileno()).st_size
            if needed > there - file.tell() or min(shape, default=0) < 0:
                raise ValueError(f"its head says {needed} bytes of values, there are fewer")
            file.seek(0)
            array: np.ndarray = formats.read_array(file, allow_pickle=False)
            return array
        # numpy parses the head as Python: a damaged one fails in every way that source can.
        except Exception as error:
            story = " ".join(str(error).split()) or type(error).__name__
            raise InputError(
                f"{path}: cannot be read: not a readable .npy file: {story:.200}"
            ) from error
