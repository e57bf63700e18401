"""A table of distances and its projections: what disentangled attention meets beside words.

Shapes as suffixes: R rows of the table, H heads, D head dim, C channels.
"""

from __future__ import annotations

from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from ..ops import DistanceRows, linear
from .config import EncoderConfig
from .disentangled import Disentangled
from .modules import Linear, Norm, SplitLinear, called, dropped, untouched


class Distances(NamedTuple):
    """What the layers of a call share."""

    table_RC: Tensor
    rows: DistanceRows
    """Which of those a distance has."""


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
        return Distances(table_RC, rows)


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
        if not self.shared:
            own = (self.query, self.key)
            made = [None if each is None else called(each, backend, table_RC) for each in own]
        elif untouched(qkv, SplitLinear):
            parts = zip(cast(SplitLinear, qkv).parts, self.wanted, strict=False)
            made = [called(part, backend, table_RC) if there else None for part, there in parts]
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
        query_RHD, key_RHD = (
            None if y_RC is None else y_RC.unflatten(-1, self.heads) for y_RC in made
        )
        return key_RHD, query_RHD

    def _by_rows(self, qkv: Linear, table_RC: Tensor, backend: str | None) -> list[Tensor | None]:
        """Queries and keys (R, H * D), of the weight's rows for those alone, which come first."""
        heads, dim = self.heads
        width = heads * dim
        first, last = (0 if self.wanted[0] else width), (2 * width if self.wanted[1] else width)
        bias = None if qkv.bias is None else qkv.bias[first:last]
        made_RC = linear(table_RC, qkv.weight[first:last], bias, backend=backend)
        if all(self.wanted):
            return [made_RC[:, :width], made_RC[:, width:]]
        return [made_RC if there else None for there in self.wanted]
