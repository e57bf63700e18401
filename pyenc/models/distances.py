"""A table of distances and its projections: what disentangled attention meets beside words.

Shapes as suffixes: R rows of the table, H heads, D head dim, C channels.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from ..ops import DistanceRows, linear
from ..ops.backend import compiling, requested_backend
from .config import EncoderConfig
from .disentangled import Disentangled
from .kept_rows import kept_rows, kept_table
from .modules import FORWARDS, Linear, Norm, SplitLinear, called, dropped, untouched


class Distances(NamedTuple):
    """What the layers of a call share."""

    table_RC: Tensor
    rows: DistanceRows
    """Which of those a distance has."""
    whole_RC: Tensor | None = None
    """All rows of the table, of which projections may be kept; None: of none."""


class DistanceTable(nn.Module):
    """norm(table), of the rows that are asked for."""

    def __init__(self, config: EncoderConfig, kind: Disentangled) -> None:
        super().__init__()
        self.table = nn.Embedding(2 * kind.span, config.hidden_size)
        self.norm = Norm(config) if kind.norm else None
        self.rows = kind.rows

    def forward(self, reach: int | None, backend: str | None) -> Distances:
        """The rows of distances up to reach on both sides; None: all of them."""
        rows = self.rows if reach is None else self.rows.within(reach)
        table_RC = self.table.weight
        if not untouched(self.table, nn.Embedding):
            table_RC = self.table(torch.arange(self.rows.count, device=table_RC.device))
        table_RC = table_RC.narrow(0, rows.first, rows.count)
        if self.norm is not None:
            table_RC, _ = called(self.norm, backend, table_RC, None)
        return Distances(table_RC, rows, self._whole(backend))

    def _whole(self, backend: str | None) -> Tensor | None:
        if compiling() or requested_backend(backend) != "auto":
            return None
        if not untouched(self, DistanceTable):  # whoever listens may give another table
            return None
        whole_RC = kept_table(self.table, self.norm)
        fits = whole_RC is not None and whole_RC.shape[0] == self.rows.count
        return whole_RC if fits else None


class Projections(nn.Module):
    """Keys and queries (R, H, D) of distances, by a layer's own projections of keys and of queries,
    or by two that are here."""

    def __init__(self, config: EncoderConfig, kind: Disentangled) -> None:
        super().__init__()
        self.wanted = (kind.position_to_content, kind.content_to_position)
        """Whether there are queries, and keys."""
        self.heads = (config.num_heads, config.head_dim)
        self.dropout = config.hidden_dropout
        self.query: Linear | None = None
        self.key: Linear | None = None
        self.shared = kind.shared
        if not kind.shared:
            width = config.num_heads * config.head_dim
            self.query, self.key = (
                Linear(config.hidden_size, width) if wanted else None for wanted in self.wanted
            )

    def forward(
        self, table_RC: Tensor, qkv: nn.Module, backend: str | None
    ) -> tuple[Tensor | None, Tensor | None]:
        """(keys, queries), (R, H, D) each or None.

        Args:
            table_RC: the table of the call.
            qkv: what gives the layer's queries, keys and values.
        """
        table_RC = dropped(table_RC, self.dropout, self.training)
        if (parts := self._parts(qkv)) is not None:
            made = [None if each is None else called(each, backend, table_RC) for each in parts]
        elif untouched(qkv, Linear):
            made = self._by_rows(cast(Linear, qkv), table_RC, backend)
        else:
            # Whoever listens, or stands in its place, is asked for the whole product.
            whole = called(qkv, backend, table_RC)
            heads, dim = self.heads
            parts_RC = whole if isinstance(whole, tuple) else whole.split(heads * dim, -1)
            made = [
                y_RC if there else None for y_RC, there in zip(parts_RC, self.wanted, strict=False)
            ]
        return self._by_heads(made)

    def kept(
        self, distances: Distances, qkv: nn.Module
    ) -> tuple[Tensor | None, Tensor | None] | None:
        """As `forward` of the call's rows, read from what is kept of all rows; None where nothing
        is."""
        whole_RC, rows = distances.whole_RC, distances.rows
        if whole_RC is None or not untouched(self, Projections):
            return None
        if self.training and self.dropout > 0:
            return None
        if (parts := self._parts(qkv)) is not None:
            width = self.heads[0] * self.heads[1]
            made = [None if each is None else kept_rows(whole_RC, each, 0, width) for each in parts]
            if any(y is None and each is not None for y, each in zip(made, parts, strict=True)):
                return None
        else:
            both_RC = kept_rows(whole_RC, qkv, *self._rows_of_weight())
            if both_RC is None:
                return None
            made = self._split(both_RC)
        return self._by_heads(
            None if y_RC is None else y_RC.narrow(0, rows.first, rows.count) for y_RC in made
        )

    def _parts(self, qkv: nn.Module) -> list[nn.Module | None] | None:
        """What makes queries and what keys, None for those that are not wanted, where each has a
        module of its own; else None."""
        if not self.shared:
            return [self.query, self.key]
        if not untouched(qkv, SplitLinear):
            return None
        parts = zip(cast(SplitLinear, qkv).parts, self.wanted, strict=False)
        return [part if there else None for part, there in parts]

    def _by_heads(self, made: Iterable[Tensor | None]) -> tuple[Tensor | None, Tensor | None]:
        """(keys, queries), (R, H, D) each or None, of queries and keys (R, H * D)."""
        query_RHD, key_RHD = (
            None if y_RC is None else y_RC.unflatten(-1, self.heads) for y_RC in made
        )
        return key_RHD, query_RHD

    def _by_rows(self, qkv: Linear, table_RC: Tensor, backend: str | None) -> list[Tensor | None]:
        """Queries and keys (R, H * D), of the weight's rows for those alone."""
        first, last = self._rows_of_weight()
        bias = None if qkv.bias is None else qkv.bias[first:last]
        return self._split(linear(table_RC, qkv.weight[first:last], bias, backend=backend))

    def _rows_of_weight(self) -> tuple[int, int]:
        """Where those of queries and of keys are, which come first."""
        width = self.heads[0] * self.heads[1]
        return (0 if self.wanted[0] else width), (2 * width if self.wanted[1] else width)

    def _split(self, made_RC: Tensor) -> list[Tensor | None]:
        """Queries and keys, of what those rows have made."""
        if all(self.wanted):
            queries_RC, keys_RC = made_RC.chunk(2, -1)
            return [queries_RC, keys_RC]
        return [made_RC if there else None for there in self.wanted]


FORWARDS.update({kind: kind.forward for kind in (DistanceTable, Projections)})
