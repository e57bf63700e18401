"""A batch on a CPU with a few tokens more, so that batches have few numbers of tokens between them.

oneDNN, where linear layers' products are its, compiles a product for each number of rows that it
meets, and keeps it: that took a twentieth of a batch's time, and half a megabyte a layer's product,
2 MB a batch (bench/NOTES.md, "A new number of rows"). Batches cut by a budget hardly ever have the
same. What is added stands behind the texts, as texts of padding that nobody reads.

Shapes: T packed tokens, B texts.
"""

from __future__ import annotations

import numpy as np

from ..models import Encoder
from ..ops.linear import onednn
from . import graphs

FEWEST, MOST = 64, 8192
"""Tokens of a batch: few have kernels of their own, and of more compiling is next to nothing."""

UNIT, PARTS = 4, 128
"""Numbers of tokens are multiples of so many, or of that part of the next power of two: a batch
grows by a 64th at the most from 256 tokens on, and there are 368 numbers."""


def rounded(tokens: int) -> int:
    """The number of tokens that a batch of so many is filled up to."""
    if not FEWEST < tokens <= MOST:
        return tokens
    unit = max(UNIT, (1 << (tokens - 1).bit_length()) // PARTS)
    return -(-tokens // unit) * unit


def pays(model: Encoder) -> bool:
    """Whether batches of this model are to be filled: its products are compiled by number of rows,
    and nobody listens to its modules, who would see more tokens than there are."""
    if model.device.type != "cpu" or not onednn.compiles(model.dtype):
        return False
    return graphs.listened(model) is None


def filled(
    ids: np.ndarray, bounds: np.ndarray, padding_id: int | None
) -> tuple[np.ndarray, np.ndarray]:
    """Ids (T,) and cu_seqlens (B + 1,) of a batch, int64, with texts of padding behind it, none
    longer than its longest."""
    tokens, longest = len(ids), int(np.diff(bounds).max(initial=0))
    more = rounded(tokens) - tokens
    if not more:
        return ids, bounds
    ends = tokens + np.minimum(np.arange(longest, more + longest, longest), more)
    padding = np.full(more, padding_id or 0, dtype=np.int64)
    return np.concatenate([ids, padding]), np.concatenate([bounds, ends])
