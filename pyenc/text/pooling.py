"""Packed hidden states to one vector a sequence, as a `Recipe` says.

Shapes: T packed tokens, B sequences, C channels.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..models.packing import places
from ..ops import segment_mean
from .recipe import Recipe


def pool(
    hidden_TC: Tensor,
    cu_seqlens: Tensor,
    recipe: Recipe,
    *,
    skip_tokens: int | Tensor = 0,
    backend: str | None = None,
) -> Tensor:
    """Pool, then the dense layers; not yet truncated or normalised.

    Args:
        hidden_TC: (T, C).
        cu_seqlens: (B + 1,).
        recipe: which pooling.
        skip_tokens: leading tokens left out of a mean (a prompt): of every sequence, or (B,)
            integers, of each.
        backend: of `segment_mean`.

    Returns:
        (B, C) or (B, out of the last dense layer), float32 or wider; zeros for a sequence
        without tokens.
    """
    lengths = cu_seqlens.diff()
    if recipe.pooling == "mean":
        weights = None
        if isinstance(skip_tokens, Tensor):
            skip_tokens = torch.repeat_interleave(
                skip_tokens.to(lengths), lengths.long(), output_size=hidden_TC.shape[0]
            )
        if isinstance(skip_tokens, Tensor) or skip_tokens:
            weights = (places(cu_seqlens, hidden_TC.shape[0]) >= skip_tokens).float()
        pooled = segment_mean(hidden_TC, cu_seqlens, weights, backend=backend)
    else:
        wide = torch.promote_types(hidden_TC.dtype, torch.float32)
        if recipe.pooling == "max":
            pooled = torch.segment_reduce(
                hidden_TC.to(wide), "max", lengths=lengths, unsafe=True, initial=float("-inf")
            )
        else:
            place = cu_seqlens[:-1] if recipe.pooling == "cls" else cu_seqlens[1:] - 1
            pooled = hidden_TC.new_zeros(len(lengths), hidden_TC.shape[1], dtype=wide)
            some = lengths > 0
            pooled[some] = hidden_TC[place[some]].to(wide)
        pooled = torch.where(lengths[:, None] > 0, pooled, 0)
    for dense in recipe.dense:
        pooled = dense(pooled)
    return pooled
