"""A call of disentangled attention as its backends take it, and sequences as they take them.

Shapes: T packed tokens, H heads, D head dim, R rows of relative positions; b sequences of n tokens
taken together, B = H b, the heads outermost.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ..attention.groups import BLOCK_ELEMENTS, Group, groups_of
from .rows import DistanceRows


@dataclass(frozen=True)
class Terms:
    """What scores are made of beside q and k."""

    position_keys: Tensor | None  # (R, H, D)
    position_queries: Tensor | None  # (R, H, D)
    rows: DistanceRows
    cu_seqlens: Tensor
    bounds: list[int]
    """The same on the host."""
    positions: Tensor | None  # (T,)
    scale: float
    dropout_p: float = 0.0
    seed: int = 0


class PairRows(NamedTuple):
    """The row of each pair of i queries and n keys, and the same turned round, from a first number
    on: rows[query * rows_step + key], turned[key * turned_step + query]."""

    rows: Tensor
    turned: Tensor
    rows_step: int
    turned_step: int


@dataclass(frozen=True)
class Side:
    """Sequences of one length, which have the rows of their distances in common."""

    group: Group
    heads: int
    at: Tensor
    """(n,), where tokens stand."""
    rows: DistanceRows
    places: bool
    """Whether they stand at 0..n-1."""

    def take(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        """(T, H, D) -> (B, n, D), side by side; of one sequence a view where it may be."""
        group = self.group
        if group.contiguous:
            x = x[group.starts[0] : group.starts[0] + len(group.starts) * group.n]
        else:
            x = x[group.rows(x.device)]
        x = x.to(dtype).transpose(0, 1)
        if len(group.starts) == 1:
            return x if x.stride(-1) == 1 else x.contiguous()
        return x.reshape(-1, group.n, x.shape[-1])

    def put(self, whole: Tensor, values: Tensor) -> None:
        """(B, n, D) -> its rows of (T, H, D)."""
        group = self.group
        rows = values.reshape(self.heads, -1, values.shape[-1]).transpose(0, 1)
        if group.contiguous:
            whole[group.starts[0] : group.starts[0] + len(rows)].copy_(rows)
        else:
            whole[group.rows(whole.device)] = rows.to(whole.dtype)

    def tile_rows(self, here: slice) -> Tensor:
        """(i, n) int64: the row of each distance of the queries `here`."""
        return self.rows.of(self.at[here, None] - self.at)

    def ends(self) -> tuple[int, int]:
        """The first and the last row that its distances read."""
        reach = self.group.n - 1 if self.places else int(self.at[-1])
        return self.rows.ends(reach)

    def rows_of(self, here: slice, low: int = 0) -> PairRows:
        """The same as `tile_rows`, in int32 and counted from the row `low`."""
        if not self.places:
            rows = self.tile_rows(here).int() - low
            return PairRows(rows, rows.t().contiguous(), rows.shape[1], rows.shape[0])
        n = self.group.n
        # The line of the next query, or key, begins one place before.
        rising = self.rows.of(torch.arange(1 - n, n, device=self.at.device)).int() - low
        falling = rising.flip(0)
        return PairRows(falling[n - 1 - here.start :], rising[n - 1 + here.start :], -1, -1)

    def blocks(self, columns: int) -> Iterator[slice]:
        """Runs of queries with so many numbers for each and each of its heads."""
        held = self.heads * len(self.group.starts) * columns
        step = min(self.group.n, max(1, BLOCK_ELEMENTS // held))
        for first in range(0, self.group.n, step):
            yield slice(first, min(first + step, self.group.n))


def by_position(x: Tensor, table: Tensor) -> Tensor:
    """x (B, n, D) with each row of a table (H, R, D): (B, n, R)."""
    heads, count, dim = table.shape
    made = torch.bmm(x.reshape(heads, -1, dim), table.transpose(1, 2))
    return made.view(x.shape[0], x.shape[1], count)


def to_content(grad: Tensor, table: Tensor) -> Tensor:
    """The gradient of x from that of `by_position` (B, n, R): (B, n, D)."""
    heads, count, dim = table.shape
    made = torch.bmm(grad.reshape(heads, -1, count), table)
    return made.view(grad.shape[0], grad.shape[1], dim)


def to_table(grad: Tensor, x: Tensor, heads: int) -> Tensor:
    """The table's (H, R, D) from the same and x (B, n, D)."""
    by_head = grad.reshape(heads, -1, grad.shape[-1])
    return torch.bmm(by_head.transpose(1, 2), x.reshape(heads, -1, x.shape[-1]))


def sides(terms: Terms, heads: int, device: torch.device) -> Iterator[Side]:
    """Sequences of one length together, as many as leave room; each by itself where positions say
    where its tokens stand."""
    if terms.positions is not None:
        for start, end in itertools.pairwise(terms.bounds):
            if end > start:
                at = terms.positions[start:end].long()
                yield Side(Group(end - start, (start,)), heads, at - at[0], terms.rows, False)
        return
    for group in groups_of(terms.bounds, max(1, BLOCK_ELEMENTS // (heads * terms.rows.count))):
        yield Side(group, heads, torch.arange(group.n, device=device), terms.rows, True)
