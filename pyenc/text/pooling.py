"""Packed hidden states to one vector a sequence, as a `Recipe` says.

Shapes: T packed tokens, B sequences, C channels.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..models.places import places, sequence_of_token
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
        skip_tokens: leading tokens left out (a prompt): of every sequence, or (B,) integers, of
            each. A mean and a maximum are of the others, the first token is the first of them, the
            last stays the last. As in sentence-transformers.
        backend: of `segment_mean`.

    Returns:
        (B, C) or (B, out of the last dense layer), float32 or wider; zeros for a sequence
        without tokens.
    """
    lengths = cu_seqlens.diff()
    skip = skip_tokens.to(lengths) if isinstance(skip_tokens, Tensor) else skip_tokens
    kept: Tensor | None = None
    if recipe.pooling in ("mean", "max") and (isinstance(skip, Tensor) or skip):
        if isinstance(skip, Tensor):
            skip = skip[sequence_of_token(cu_seqlens, hidden_TC.shape[0])]
        kept = places(cu_seqlens, hidden_TC.shape[0]) >= skip
    if recipe.pooling == "mean":
        weights = None if kept is None else kept.float()
        pooled = segment_mean(hidden_TC, cu_seqlens, weights, backend=backend)
    else:
        wide = torch.promote_types(hidden_TC.dtype, torch.float32)
        if recipe.pooling == "max":
            wide_TC = hidden_TC.to(wide)
            if kept is not None:
                wide_TC = wide_TC.masked_fill(~kept[:, None], float("-inf"))
            pooled = torch.segment_reduce(
                wide_TC, "max", lengths=lengths, unsafe=True, initial=float("-inf")
            )
        else:
            place = cu_seqlens[1:] - 1
            if recipe.pooling == "cls":
                place = cu_seqlens[:-1] + torch.where(lengths > skip, skip, 0)
            # An empty sequence has no place; what it takes instead is left out below.
            place = place.clamp(0, max(hidden_TC.shape[0] - 1, 0))
            rows = hidden_TC if len(hidden_TC) else hidden_TC.new_zeros(1, hidden_TC.shape[1])
            pooled = rows[place].to(wide)
        pooled = torch.where(lengths[:, None] > 0, pooled, 0)
    for dense in recipe.dense:
        pooled = dense(pooled)
    return pooled
