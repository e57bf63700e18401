"""The few shapes that packed batches are filled up to, so that a CUDA graph of one serves many.

Shapes: T tokens and B sequences of a batch as it is filled up.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

PARTS = 8
"""Buckets from one power of two to the next: at most an eighth more tokens than there are."""
FEWEST = 64
"""Tokens of the smallest bucket."""


class Shape(NamedTuple):
    """What a batch is filled up to."""

    tokens: int
    sequences: int


def bucket(tokens: int, sequences: int) -> Shape:
    """The smallest that holds them: B a power of two, T an eighth of one times a whole number."""
    tokens = max(tokens, FEWEST)
    unit = (1 << (tokens - 1).bit_length() - 1) // PARTS
    return Shape(-(-tokens // unit) * unit, 1 << (sequences - 1).bit_length())


def filled(
    ids: np.ndarray, bounds: np.ndarray, shape: Shape, padding_id: int | None
) -> tuple[np.ndarray, np.ndarray]:
    """Ids (T,) and cu_seqlens (B + 1,) of a batch, int64, with what it lacks of a shape."""
    more = np.full(shape.tokens - len(ids), padding_id or 0, dtype=np.int64)
    empty = np.full(shape.sequences + 1 - len(bounds), bounds[-1], dtype=np.int64)
    return np.concatenate([ids, more]), np.concatenate([bounds, empty])
