"""The oracle of the segment mean, as the formula reads, in the dtype given.

Shapes: T packed tokens, B sequences, C channels.
"""

from __future__ import annotations

import itertools

import torch
from einops import einsum
from torch import Tensor


def segment_mean_reference(
    x: Tensor, cu_seqlens: Tensor, weights: Tensor | None = None, normalize: bool = False
) -> Tensor:
    """x (T, C): sum_t w_t x_t / sum_t w_t of each sequence, (B, C); zero weight gives zeros."""
    bounds = cu_seqlens.tolist()
    rows = []
    for start, end in itertools.pairwise(bounds):
        w = torch.ones(end - start, dtype=x.dtype, device=x.device)
        if weights is not None:
            w = weights[start:end].to(x.dtype)
        total = w.sum()
        row = einsum(w, x[start:end], "t, t c -> c")
        # Twice, for the gradient of a quotient by zero is none; nothing is read on the host, since
        # a transform may have many weights at once.
        none = total == 0
        row = row.masked_fill(none, 0) / total.masked_fill(none, 1)
        if normalize:
            row = row / row.norm().clamp(min=1e-12)
        rows.append(row)
    if rows:
        return torch.stack(rows)
    # Of no sequences, but of one graph with what they are of.
    return x[:0] if weights is None else x[:0] * weights[:0, None].to(x.dtype)
