"""The ranges of `pyenc embed --precision int8`: one and the same for every part of a job."""

from __future__ import annotations

import argparse
import hashlib
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InputError
from ..text import TextEncoder
from ..text.precision import RANGED, checked_precision, ranges_of
from .files import replacing
from .parts import Parts
from .readers import open_source
from .rows import BadRow
from .vectors import read_array, write_header, write_values


def given_ranges(args: argparse.Namespace, dim: int) -> np.ndarray | None:
    """What --ranges names, (2, dim) float32.

    Raises:
        InputError: no .npy of ranges; nothing to take ranges from where they are needed; something
            where they are not.
    """
    if args.precision in RANGED and not args.ranges and not args.calibration:
        raise InputError(
            f"--precision {args.precision} needs --ranges or --calibration: taken from the texts "
            "as they come, they would differ from part to part"
        )
    for name in ("ranges", "calibration"):
        if getattr(args, name) and args.precision not in RANGED:
            raise InputError(
                f"--{name} is of --precision {' and '.join(RANGED)}, not of {args.precision}"
            )
    if not args.ranges:
        return None
    path = Path(args.ranges)
    try:
        array = read_array(path)
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from error
    if array.dtype.kind != "f":
        raise InputError(f"{path}: {array.dtype}, expected numbers of floating point")
    try:
        return checked_precision(args.precision, array, None, dim=dim).ranges
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def calibration_texts(args: argparse.Namespace) -> list[str]:
    """What --calibration names, every text of it.

    Raises:
        InputError: a row is bad, or there are fewer than two.
    """
    if not args.calibration or args.precision not in RANGED:
        return []
    if args.calibration == "-":
        raise InputError("--calibration -: expected a file, which a resumed run can read again")
    source = open_source(args.calibration, args.field, None, None)
    source.look()
    texts = []
    for entry in source.entries(source.meter()):
        if isinstance(entry, BadRow):
            raise InputError(entry.reason)
        texts.append(entry.text)
    if len(texts) < 2:
        raise InputError(f"{args.calibration}: {len(texts)} texts have no ranges; more are needed")
    return texts


def settings(
    args: argparse.Namespace, ranges: np.ndarray | None, calibration: list[str]
) -> dict[str, Any]:
    """What the manifest of a run says of them."""
    said: dict[str, Any] = {"precision": args.precision}
    if ranges is not None:
        said["ranges"] = hashlib.sha256(ranges.tobytes()).hexdigest()
    if calibration:
        state = hashlib.sha256()
        for text in calibration:
            content = text.encode("utf-8")
            state.update(b"%d " % len(content) + content)
        said["calibration"] = state.hexdigest()
    return said


def calibrated(
    parts: Parts,
    encoder: TextEncoder,
    options: dict[str, Any],
    texts: list[str],
    precision: str,
) -> np.ndarray:
    """The ranges of the texts' vectors (2, dim); those that an unfinished run began with, where
    there are any, for another batch size or device moves them by rounding."""
    if parts.ranges.exists():
        ranges = read_array(parts.ranges)
        if ranges.ndim != 2 or len(ranges) != 2 or ranges.dtype != np.float32:
            raise InputError(f"{parts.ranges}: damaged; start anew with --overwrite")
        return ranges
    if parts.count:
        raise InputError(f"{parts.ranges}: missing; start anew with --overwrite")
    ranges = ranges_of(encoder.encode(texts, progress=False, **options), precision)
    keep(parts, ranges)
    return ranges


def keep(parts: Parts, ranges: np.ndarray) -> None:
    """With the parts, and beside the output in the end: who reads its numbers needs them."""
    with replacing(parts.ranges) as file:
        write_header(file, *ranges.shape)
        write_values(file, ranges)
