"""A stand-in for the op, dense, until the real one is merged."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class DistanceRows:
    span: int
    buckets: int = 0
    max_distance: int = 0
    first: int = 0
    last: int | None = None

    @property
    def count(self) -> int:
        return (2 * self.span if self.last is None else self.last + 1) - self.first

    def __call__(self, d: Tensor) -> Tensor:
        if self.buckets > 0 and self.max_distance > 0:
            mid = self.buckets // 2
            near = (d < mid) & (d > -mid)
            far = torch.where(near, torch.full_like(d, mid - 1), d.abs())
            log = torch.log(far / mid) / torch.log(torch.tensor((self.max_distance - 1) / mid))
            log = torch.ceil(log * (mid - 1)) + mid
            d = torch.where(far <= mid, d.to(log.dtype), log * d.sign()).long()
        return (d + self.span).clamp(0, 2 * self.span - 1) - self.first

    def within(self, reach: int) -> DistanceRows:
        whole = replace(self, first=0, last=None)
        ends = whole(torch.tensor([-reach, reach], device="cpu"))
        return replace(self, first=int(ends[0]), last=int(ends[1]))


def disentangled_attention(
    q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, *, position_keys: Tensor | None,
    position_queries: Tensor | None, rows: DistanceRows, positions: Tensor | None = None,
    scale: float | None = None, dropout_p: float = 0.0, return_lse: bool = False,
    backend: str | None = None,
) -> Any:  # fmt: skip
    tokens = q.shape[0]
    terms = (position_keys is not None) + (position_queries is not None)
    scale = 1 / math.sqrt(q.shape[2] * (1 + terms)) if scale is None else scale
    at = torch.arange(tokens, device=q.device)
    row = torch.searchsorted(cu_seqlens.long(), at, right=True) - 1
    place = at - cu_seqlens.long()[row] if positions is None else positions.long()
    r = rows(place[:, None] - place)
    same = row[:, None] == row
    r = torch.where(same, r, 0)
    s = torch.einsum("ihd,jhd->hij", q, k)
    h = torch.arange(q.shape[1], device=q.device)[:, None, None]
    i, j = at[:, None], at[None]
    if position_keys is not None:
        s = s + torch.einsum("ihd,rhd->hir", q, position_keys)[h, i, r]
    if position_queries is not None:
        s = s + torch.einsum("jhd,rhd->hjr", k, position_queries)[h, j, r]
    s = (scale * s).masked_fill(~same, -torch.inf)
    w = torch.dropout(s.softmax(-1), dropout_p, dropout_p > 0)
    return torch.einsum("hij,jhd->ihd", w, v)
