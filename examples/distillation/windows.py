"""What a step is taught: short and long windows of documents, and batches of them.

A short window, of 8 to 254 tokens, is what the teacher reads whole. A long one, of 300 to
`LONGEST`, is more than it can read; see `teacher.py` for what is its target. Both are drawn with a
seed, and a batch takes from both so that long ones have their share of the tokens in every
stretch of steps.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from .tokens import Corpus

CHUNK = 254
"""Tokens that the teacher reads at once, beside its two special ones: as it is published."""
SHORTEST, LONG_FROM, LONGEST = 8, 300, 4094
WHOLE_SHARE = 0.4
"""Share of the short windows that are drawn as long as may be; others are log-uniform."""


class Windows(NamedTuple):
    """Pieces of a corpus."""

    starts: np.ndarray  # (N,) int64, places in the corpus
    lengths: np.ndarray  # (N,) int64, without special tokens

    @property
    def tokens(self) -> int:
        """With the special tokens of each."""
        return int(self.lengths.sum()) + 2 * len(self.lengths)


def draw(
    corpus: Corpus, documents: Sequence[int], tokens: int, long_share: float, seed: int
) -> Windows:
    """Windows of documents, `tokens` in all or what there is of them, `long_share` in long ones.

    A document is cut into short windows end to end; long ones come from those that are long enough,
    from their beginning or from where a paragraph begins.
    """
    rng = np.random.default_rng(seed)
    order = rng.permutation(np.asarray(documents, np.int64))
    short: list[tuple[int, int]] = []
    long: list[tuple[int, int]] = []
    used = 0
    for index in order:
        if used >= tokens * (1 - long_share):
            break
        for piece in cut(corpus, int(index), rng):
            short.append(piece)
            used += piece[1] + 2
    deep = [int(i) for i in order if np.diff(corpus.bounds[i : i + 2])[0] >= LONG_FROM]
    used = turn = 0
    while deep and used < tokens * long_share and turn < 8:
        for index in deep:
            if used >= tokens * long_share:
                break
            start, end = (int(x) for x in corpus.bounds[index : index + 2])
            length = min(end - start, log_uniform(rng, LONG_FROM, LONGEST))
            # Its beginning first, then what begins with a paragraph further on.
            begins = [0, *(int(e) for e in corpus.ends_of(index) if e + length <= end - start)]
            at = begins[0] if turn == 0 else begins[int(rng.integers(len(begins)))]
            long.append((start + at, length))
            used += length + 2
        turn += 1
    chosen = np.array(short + long, np.int64).reshape(-1, 2)
    return Windows(chosen[:, 0], chosen[:, 1])


def cut(corpus: Corpus, index: int, rng: np.random.Generator) -> list[tuple[int, int]]:
    """A document end to end in short windows, (start, length) each, which end where a paragraph
    does if one ends in their second half."""
    start, end = (int(x) for x in corpus.bounds[index : index + 2])
    ends = corpus.ends_of(index)
    pieces: list[tuple[int, int]] = []
    at = 0
    while end - start - at >= SHORTEST:
        wanted = CHUNK if rng.random() < WHOLE_SHARE else log_uniform(rng, SHORTEST, CHUNK)
        length = min(wanted, end - start - at)
        near = int(np.searchsorted(ends, at + length, "right")) - 1
        if near >= 0 and ends[near] > at + max(SHORTEST, length // 2):
            length = int(ends[near]) - at
        pieces.append((start + at, length))
        at += length
    return pieces


def log_uniform(rng: np.random.Generator, low: int, high: int) -> int:
    return round(math.exp(rng.uniform(math.log(low), math.log(high))))


def batches(windows: Windows, budget: int, seed: int, epoch: int) -> list[list[int]]:
    """An epoch's batches of about `budget` tokens: windows by their numbers, in an order of the
    epoch's own, long and short in step with each other."""
    rng = np.random.default_rng((seed, epoch))
    order = rng.permutation(len(windows.lengths))
    queues = [order[windows.lengths[order] <= CHUNK], order[windows.lengths[order] > CHUNK]]
    wholes = [max(1, int(windows.lengths[q].sum())) for q in queues]
    taken, places = [0, 0], [0, 0]
    made: list[list[int]] = []
    batch: list[int] = []
    size = 0
    while any(places[q] < len(queues[q]) for q in (0, 1)):
        # From the one that is behind.
        behind = [taken[q] / wholes[q] if places[q] < len(queues[q]) else 2.0 for q in (0, 1)]
        q = int(behind[1] < behind[0])
        window = int(queues[q][places[q]])
        length = int(windows.lengths[window])
        if batch and size + length + 2 > budget:
            made.append(batch)
            batch, size = [], 0
        batch.append(window)
        size += length + 2
        taken[q] += length
        places[q] += 1
    return made  # what is left over is no whole batch


def packed(
    corpus: Corpus, windows: Windows, batch: Sequence[int], cls: int, sep: int
) -> np.ndarray:
    """Token ids of a batch with special tokens, (T,) int64."""
    rows: list[np.ndarray] = []
    for window in batch:
        start, length = windows.starts[window], windows.lengths[window]
        rows += [np.array([cls]), corpus.ids[start : start + length], np.array([sep])]
    return np.concatenate(rows).astype(np.int64)
