"""Tiles of queries for a bias of one's own in torch (own_bias.py), and their scores.

A tile has all keys of its queries: what the object says of one may be made of all (a softmax over
them, the largest few).

Shapes: T packed tokens, H heads, D head dim; b sequences of n tokens taken together, B = b H; i
queries of a tile.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from .far import fitting
from .groups import BLOCK_ELEMENTS, Group
from .own_object import added, apply_own
from .terms import CustomTerms

TILE_ELEMENTS = 2**20
"""Scores of a tile, which the bias sees at once: 4 MB in float32."""
TILE_ROWS = 16
"""Queries of a tile at the least, however many keys there are, up to BLOCK_ELEMENTS: the products
of fewer read all keys for little."""
SHORT = 512
"""Sequences of so many tokens are taken together as far as one tile holds them."""


def walks(q: Tensor, terms: CustomTerms) -> Iterator[Walk]:
    heads = q.shape[1]
    for group, at in terms.groups(q.device, TILE_ELEMENTS // (heads * SHORT)):
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

    def shape(self, here: slice, columns: int | None = None) -> tuple[int, int, int]:
        """(B, i, columns), by default as many as keys."""
        return self.batch, here.stop - here.start, self.group.n if columns is None else columns

    def put(self, x: Tensor, values: Tensor) -> None:
        """(B, n, D) -> its rows of (T, H, D)."""
        self.group.put(x, values.unflatten(0, (-1, self.heads)))

    def rows(self) -> Iterator[slice]:
        """Queries of each tile."""
        n, whole = self.group.n, self.batch * self.group.n
        if self.at.device.type != "cpu":  # has no cache to keep to, and wants few launches
            step = BLOCK_ELEMENTS // (4 * whole)
        else:
            step = min(max(TILE_ELEMENTS // whole, TILE_ROWS), BLOCK_ELEMENTS // whole)
        step = min(n, max(1, step))
        for first in range(0, n, step):
            yield slice(first, min(first + step, n))

    def outside(self, here: slice) -> Tensor | None:
        """Pairs (i, n) that the window hides; None where it hides none."""
        left, right = self.terms.window
        if self.terms.positions is None:  # then positions are places
            left = -1 if left >= here.stop - 1 else left
            right = -1 if right >= self.group.n - 1 - here.start else right
        if left < 0 and right < 0:
            return None
        ahead = self.at - self.at[here, None]
        if left < 0:
            return ahead > right
        return -ahead > left if right < 0 else (-ahead > left) | (ahead > right)

    def scores(self, raw: Tensor, here: slice) -> Tensor:
        """New scores of a tile (B, i, n): written over raw, or made by the map."""
        outside = self.outside(here)
        if self.terms.mapped:
            # A map is given the scores of one sequence, and may write over them, which autograd
            # allows of tensors with no more to them.
            step = self.heads
            each = [raw[b : b + step] for b in range(0, len(raw), step)]
            each = [x.clone() for x in each] if raw.requires_grad else each
            made = [apply_own(self.terms.bias, x, self.at[here], self.at) for x in each]
            score = torch.cat(made) if len(made) > 1 else made[0]
            score = score.to(raw.dtype)
            return score if outside is None else score.masked_fill(outside, -math.inf)
        return self.add(raw, self.added(here), outside)

    def added(self, here: slice) -> Tensor:
        """What the object adds to the scores of a sequence: (H, i, n), or broadcast to it."""
        return added(self.terms.bias, self.at[here], self.at, self.heads)  # type: ignore[arg-type]

    def add(self, raw: Tensor, bias: Tensor, outside: Tensor | None) -> Tensor:
        raw.unflatten(0, (-1, self.heads)).add_(fitting(bias.detach(), raw.dtype))
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
