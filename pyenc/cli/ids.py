"""Ids that stand at more than one row, found as they come."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np

CAPACITY = 1 << 25
"""Ids that are remembered, 8 bytes each."""


class SeenIds:
    """The ids so far, as hashes of 64 bits in a few sorted runs.

    Attributes:
        repeated: rows whose id a row before had.
        full: whether ids beyond `CAPACITY` came, which are compared with the first ones alone.
    """

    def __init__(self) -> None:
        self.repeated = 0
        self.full = False
        self._runs: list[np.ndarray] = []

    def add(self, ids: Sequence[str | int]) -> int | None:
        """Take more ids.

        Returns:
            The place among `ids` of the first one that was there before, or None.
        """
        hashes = np.array([_hash(each) for each in ids], dtype=np.uint64)
        first = np.unique(hashes, return_index=True)[1]
        new = np.zeros(len(ids), dtype=bool)
        new[first] = True
        for run in self._runs:
            place = np.minimum(np.searchsorted(run, hashes), len(run) - 1)
            new &= run[place] != hashes
        again = np.flatnonzero(~new)
        self.repeated += len(again)
        fresh = np.sort(hashes[new])
        if self.full or sum(map(len, self._runs)) + len(fresh) > CAPACITY:
            self.full = True
        elif len(fresh):
            self._keep(fresh)
        return int(again[0]) if len(again) else None

    def _keep(self, fresh: np.ndarray) -> None:
        self._runs.append(fresh)
        # Each run at least twice as long as the next: few to search, and each id rarely moved.
        while len(self._runs) > 1 and len(self._runs[-2]) < 2 * len(self._runs[-1]):
            self._runs.append(np.union1d(self._runs.pop(), self._runs.pop()))


def _hash(identity: str | int) -> int:
    content = identity.encode() if isinstance(identity, str) else b"%d" % identity
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "little")
