"""The oracle of disentangled attention: dense, as the formula reads, in the dtype given (float64
for the truth).

Nothing here is fast, and nothing here is shared with a backend. Shapes: T packed tokens, H heads, D
head dim, R rows of relative positions, n tokens of one sequence.
"""

from __future__ import annotations

import itertools

import numpy as np
import torch
from einops import einsum, rearrange
from torch import Tensor

from .rows import DistanceRows


def disentangled_attention_reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens: Tensor,
    *,
    position_keys: Tensor | None,
    position_queries: Tensor | None,
    rows: DistanceRows,
    positions: Tensor | None = None,
    scale: float | None = None,
) -> Tensor:
    """softmax of scale * (content to content + content to position + position to content), times v,
    for each sequence: (T, H, D)."""
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    outs = []
    # Of no sequences as of one without tokens: no numbers, but of one graph with what they are of.
    bounds = cu_seqlens.tolist() if len(cu_seqlens) > 1 else [0, 0]
    for start, end in itertools.pairwise(bounds):
        at = torch.arange(end - start, device="cpu")
        if positions is not None:
            at = positions[start:end].cpu().long()
        back = rearrange(at, "i -> i 1") - rearrange(at, "j -> 1 j")
        # Positions with holes may lie far apart: only the distances that occur have a row here.
        distances, index = back.unique(return_inverse=True)
        each = [_row(d, rows) for d in distances.tolist()]
        row = torch.tensor(each, dtype=torch.long, device="cpu")[index].to(q.device)
        score = einsum(q[start:end], k[start:end], "i h d, j h d -> h i j")
        if position_keys is not None:
            score = score + einsum(q[start:end], position_keys[row], "i h d, i j h d -> h i j")
        if position_queries is not None:
            score = score + einsum(k[start:end], position_queries[row], "j h d, i j h d -> h i j")
        weight = (scale * score).softmax(-1)
        outs.append(einsum(weight, v[start:end], "h i j, j h d -> i h d"))
    return torch.cat(outs)


def _row(distance: int, rows: DistanceRows) -> int:
    """The row of one signed distance, the logarithm in float32 as DeBERTa takes it."""
    bucket, size = distance, abs(distance)
    middle = rows.buckets // 2
    if rows.buckets and size > middle:
        whole = np.log(np.float32((rows.max_distance - 1) / middle))
        part = np.log(np.float32(size) / np.float32(middle)) / whole
        bucket = int(np.ceil(part * np.float32(middle - 1))) + middle
        bucket = bucket if distance > 0 else -bucket
    return min(max(bucket + rows.span, 0), 2 * rows.span - 1) - rows.first
