"""Sequences of equal length taken together, and the blocks of queries that bound the memory.

Shapes: T packed tokens, b sequences of one length n, H heads, D head dim.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

BLOCK_ELEMENTS = 4 * 2**20
"""Scores held at once: 16 MB in float32, a few buffers of that size at the peak."""

GROUP_TOKENS = 8192
"""Tokens taken together at the most, so that many short sequences leave room for whole blocks."""

FAINTEST = 2.0**-100
"""A weight below this share of its row's largest is zero: no row shows it, and its products would
be subnormal, which costs some processors a hundred cycles a number."""


@dataclass(frozen=True)
class Group:
    """b sequences of n tokens: a run of packed tokens, or rows picked by index."""

    n: int
    starts: tuple[int, ...]

    @property
    def contiguous(self) -> bool:
        return all(b - a == self.n for a, b in zip(self.starts, self.starts[1:], strict=False))

    def rows(self, device: torch.device) -> Tensor:
        starts = torch.tensor(self.starts, dtype=torch.long, device=device)
        return (starts[:, None] + torch.arange(self.n, device=device)).reshape(-1)

    def take(self, x: Tensor) -> Tensor:
        """(T, H, D) -> (b, H, n, D), a view where the sequences stand side by side.

        The last axis always has stride 1: torch's CPU kernel, called directly, takes that for
        granted and reads astray otherwise.
        """
        if x.stride(-1) != 1:
            x = x.contiguous()
        if self.contiguous:
            rows = x[self.starts[0] : self.starts[0] + len(self.starts) * self.n]
        else:
            rows = x[self.rows(x.device)]
        return rows.unflatten(0, (len(self.starts), self.n)).transpose(1, 2)

    def put(self, x: Tensor, values: Tensor) -> None:
        """(b, H, n, D) -> its rows of (T, H, D)."""
        rows = values.transpose(1, 2)
        if self.contiguous:
            place = x[self.starts[0] : self.starts[0] + len(self.starts) * self.n]
            place.unflatten(0, (len(self.starts), self.n)).copy_(rows)
        else:
            x[self.rows(x.device)] = rows.flatten(0, 1).to(x.dtype)


def groups_of(bounds: list[int], most_tokens: int = GROUP_TOKENS) -> Iterator[Group]:
    """Those of one length together, of so many tokens at the most where they are more than one."""
    by_length: dict[int, list[int]] = {}
    for start, end in itertools.pairwise(bounds):
        if end > start:
            by_length.setdefault(end - start, []).append(start)
    for n, starts in by_length.items():
        most = max(1, most_tokens // n)
        for first in range(0, len(starts), most):
            yield Group(n, tuple(starts[first : first + most]))


def query_blocks(group: Group, q_bhnd: Tensor) -> Iterator[slice]:
    b, heads, n, _ = q_bhnd.shape
    rows = max(1, min(n, BLOCK_ELEMENTS // (b * heads * n)))
    for start in range(0, n, rows):
        yield slice(start, min(start + rows, n))
