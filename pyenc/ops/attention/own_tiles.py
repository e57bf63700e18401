"""Tiles of queries and keys for a bias of one's own in torch (own_bias.py), and their scores.

Shapes: T packed tokens, H heads, D head dim; b sequences of n tokens taken together, B = b H; i
queries and j keys of a tile.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from .bias import added, apply_own
from .groups import BLOCK_ELEMENTS, Group
from .terms import CustomTerms

TILE_ELEMENTS = 2**20
"""Scores of a tile, which the bias sees at once: 4 MB in float32."""
TILE_KEYS = 512


def walks(q: Tensor, terms: CustomTerms) -> Iterator[Walk]:
    heads = q.shape[1]
    for group, at in terms.groups(q.device, TILE_ELEMENTS // (heads * TILE_KEYS)):
        yield Walk(terms, group, heads, at)


@dataclass(frozen=True)
class Walk:
    """The tiles of sequences of one length, in the order that both directions take."""

    terms: CustomTerms
    group: Group
    heads: int
    at: Tensor  # (n,), positions

    @property
    def batch(self) -> int:
        return len(self.group.starts) * self.heads

    def take(self, x: Tensor, wide: torch.dtype) -> Tensor:
        """(T, H, D) -> (B, n, D), side by side."""
        return self.group.take(x).to(wide).contiguous().flatten(0, 1)

    def shape(self, here: slice, there: slice) -> tuple[int, int, int]:
        return self.batch, here.stop - here.start, there.stop - there.start

    def put(self, x: Tensor, values: Tensor) -> None:
        """(B, n, D) -> its rows of (T, H, D)."""
        self.group.put(x, values.unflatten(0, (-1, self.heads)))

    @property
    def tile(self) -> tuple[int, int]:
        """Queries and keys of a tile."""
        n, whole = self.group.n, self.batch * self.group.n
        if self.at.device.type != "cpu":  # has no cache to keep to, and wants few launches
            return min(n, max(1, BLOCK_ELEMENTS // (4 * whole))), n
        keys = min(n, TILE_KEYS)
        queries = min(TILE_ELEMENTS // (self.batch * keys), BLOCK_ELEMENTS // whole)
        return min(n, max(1, queries)), keys

    def rows(self) -> Iterator[slice]:
        step = self.tile[0]
        for first in range(0, self.group.n, step):
            yield slice(first, min(first + step, self.group.n))

    def tiles_of_keys(self) -> Iterator[slice]:
        step, n = self.tile[1], self.group.n
        for first in range(0, n, step):
            yield slice(first, min(first + step, n))

    def columns(self, here: slice) -> Iterator[slice]:
        """Tiles of keys, but for those that the window hides from all these queries."""
        left, right = self.terms.window
        for there in self.tiles_of_keys():
            if self.terms.positions is None and (
                (0 <= left < here.start - there.stop + 1)
                or (0 <= right < there.start - here.stop + 1)
            ):
                continue
            yield there

    def outside(self, here: slice, there: slice) -> Tensor | None:
        """Pairs (i, j) that the window hides; None where it hides none."""
        left, right = self.terms.window
        if self.terms.positions is None:  # then positions are places
            left = -1 if left >= here.stop - 1 - there.start else left
            right = -1 if right >= there.stop - 1 - here.start else right
        if left < 0 and right < 0:
            return None
        ahead = self.at[None, there] - self.at[here, None]
        if left < 0:
            return ahead > right
        return -ahead > left if right < 0 else (-ahead > left) | (ahead > right)

    def scores(self, raw: Tensor, here: slice, there: slice) -> Tensor:
        """New scores of a tile (B, i, j): written over raw, or made by the map."""
        outside = self.outside(here, there)
        if self.terms.mapped:
            i, j = self.at[here], self.at[there]
            # A map is given the scores of one sequence.
            each = raw.unflatten(0, (-1, self.heads)).unbind(0) if len(raw) > self.heads else [raw]
            made = [apply_own(self.terms.bias, x, i, j).to(raw.dtype) for x in each]
            score = torch.cat(made) if len(made) > 1 else made[0]
            return score if outside is None else score.masked_fill(outside, -math.inf)
        bias = added(self.terms.bias, self.at[here], self.at[there])  # type: ignore[arg-type]
        return self.add(raw, bias, outside)

    def add(self, raw: Tensor, bias: Tensor, outside: Tensor | None) -> Tensor:
        raw.unflatten(0, (-1, self.heads)).add_(bias.detach().to(raw.dtype))
        return raw if outside is None else raw.masked_fill_(outside, -math.inf)


class Buffer:
    """Room for one tile of numbers after the other, side by side whatever its size."""

    def __init__(self, like: Tensor, wide: torch.dtype) -> None:
        self.numbers = like.new_empty(0, dtype=wide)

    def of(self, *shape: int) -> Tensor:
        wanted = math.prod(shape)
        if self.numbers.numel() < wanted:
            self.numbers = self.numbers.new_empty(wanted)
        return self.numbers[:wanted].view(shape)
