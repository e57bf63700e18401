"""Which row of a table of relative positions a distance reads (He et al., arXiv 2006.03654; the
buckets are DeBERTa-v2's)."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from torch import Tensor

from ...errors import InputError
from ..sharing import shared


@dataclass(frozen=True)
class DistanceRows:
    """Row `clamp(bucket(d) + span, 0, 2 * span - 1)` of a table of 2 * span, for d = i - j.

    Without buckets, `bucket(d)` is d. With them it is d up to half of them, and grows by the
    logarithm of d from there on, to `buckets - 1` at `max_distance - 1`.

    Args:
        span: half of the table's rows.
        buckets: 0, or span.
        max_distance: of buckets; 0 without.
        first, last: the rows [first, last) of the table alone are there (`within`), the row of a
            distance is counted from the first; None: to the end.

    Raises:
        InputError: the numbers make no such table.
    """

    span: int
    buckets: int = 0
    max_distance: int = 0
    first: int = 0
    last: int | None = None

    def __post_init__(self) -> None:
        for name in ("span", "buckets", "max_distance", "first", "last"):
            value = getattr(self, name)
            if type(value) is not int and not (name == "last" and value is None):
                raise InputError(f"DistanceRows: {name} must be a whole number, got {value!r:.80}")
        if not 1 <= self.span < 2**31:
            raise InputError(f"DistanceRows: span must be at least 1, got {self.span}")
        if self.buckets not in (0, self.span):
            raise InputError(
                f"DistanceRows: buckets must be 0 or span, {self.span}; got {self.buckets}"
            )
        if bool(self.buckets) != bool(self.max_distance):
            raise InputError(
                f"DistanceRows: max_distance {self.max_distance} goes with buckets, of which there "
                f"are {self.buckets}"
            )
        if self.buckets and (self.buckets < 2 or self.max_distance <= self.buckets // 2 + 1):
            raise InputError(
                f"DistanceRows: {self.buckets} buckets must be at least 2, and max_distance, "
                f"{self.max_distance}, more than half of them and one"
            )
        if not 0 <= self.first < self.end <= 2 * self.span:
            raise InputError(
                f"DistanceRows: rows [{self.first}, {self.end}) must be some of {2 * self.span}"
            )

    @property
    def end(self) -> int:
        return 2 * self.span if self.last is None else self.last

    @property
    def count(self) -> int:
        """R, how many rows there are."""
        return self.end - self.first

    def of(self, distance: Tensor) -> Tensor:
        """The row of each distance i - j (integers, any shape): int64, the same shape."""
        bucket = _bucket(distance, self.buckets, self.max_distance) if self.buckets else distance
        rows = (bucket.long() + self.span).clamp_(0, 2 * self.span - 1) - self.first
        return rows if self.count == 2 * self.span else rows.clamp_(0, self.count - 1)

    def of_distance(self, reach: int) -> tuple[Tensor, int]:
        """The rows (2 reach + 1,) int32 of the distances from -reach to reach, on the host, and a
        lesser reach where all beyond it have the rows at its ends."""
        # Where the last bucket begins, a logarithm's rounding may move by a place.
        reach = min(reach, max(self.span, 2 * self.max_distance))
        return shared(lambda: _of_distance(self, reach), ("rows of distances", self, reach)), reach

    def ends(self, reach: int) -> tuple[int, int]:
        """The first and the last row that distances of at most `reach` read."""
        return _ends(self, reach)

    def within(self, reach: int) -> DistanceRows:
        """The same, with the rows alone that distances of at most `reach` read."""
        low, high = replace(self, first=0, last=None).ends(reach)
        return replace(self, first=max(low, self.first), last=min(high + 1, self.end))

    def check_reach(self, op: str, reach: int) -> None:
        """Every distance up to `reach` has its row.

        Raises:
            InputError: one has none.
        """
        low, high = replace(self, first=0, last=None).ends(reach)
        if low < self.first or high >= self.end:
            raise InputError(
                f"{op}: a distance of {reach} reads rows {low} to {high} of {2 * self.span}, and "
                f"rows [{self.first}, {self.end}) are there; rows.within({reach}) has them"
            )


def _of_distance(rows: DistanceRows, reach: int) -> Tensor:
    return rows.of(torch.arange(-reach, reach + 1, device="cpu")).int()


@lru_cache(maxsize=1024)
def _ends(rows: DistanceRows, reach: int) -> tuple[int, int]:
    low, high = rows.of(torch.tensor([-reach, reach], dtype=torch.int64, device="cpu")).tolist()
    return low, high


def _bucket(distance: Tensor, buckets: int, max_distance: int) -> Tensor:
    """In float32 and in the original's order of operations: where the logarithm hits a whole
    number another one lands in the neighbouring bucket."""
    middle = buckets // 2
    size = distance.abs()
    ratio = torch.log(size.clamp(min=middle).float() / middle)
    whole = torch.full((), (max_distance - 1) / middle, dtype=torch.float32, device=distance.device)
    far = torch.ceil(ratio / whole.log() * (middle - 1)) + middle
    return torch.where(size <= middle, distance, (far * distance.sign()).long())


def reach_of(bounds: list[int], positions: Tensor | None) -> int:
    """The longest distance in packed sequences: of places, or of positions, which rise."""
    ends = [(a, b - 1) for a, b in itertools.pairwise(bounds) if b > a]
    if not ends:
        return 0
    if positions is None:
        return max(last - first for first, last in ends)
    first, last = (
        positions[torch.tensor(ends, dtype=torch.long, device=positions.device)].long().t()
    )
    return int((last - first).max())
