"""Packed hidden states to one vector a sequence, as a `Recipe` says.

Shapes: T packed tokens, B sequences, C channels, M poolings side by side.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..errors import InputError
from ..models.places import places, sequence_of_token
from ..ops import segment_mean
from .recipe import POOLINGS, Recipe


def pool(
    hidden_TC: Tensor,
    cu_seqlens: Tensor,
    recipe: Recipe,
    *,
    skip_tokens: int | Tensor = 0,
    backend: str | None = None,
) -> Tensor:
    """Pool, then the layers behind; not yet truncated or normalised.

    Args:
        hidden_TC: (T, C).
        cu_seqlens: (B + 1,).
        recipe: which poolings, and which layers.
        skip_tokens: as of `pooled`.
        backend: of `segment_mean`.

    Returns:
        (B, M * C) or (B, out of the last layer), float32 or wider; whole numbers where the recipe
        has bytes; of a sequence without tokens what the layers make of zeros.
    """
    vectors = pooled(
        hidden_TC, cu_seqlens, recipe.poolings, skip_tokens=skip_tokens, backend=backend
    )
    for layer in recipe.dense:
        vectors = layer(vectors)
    return tanh_bytes(vectors) if recipe.tanh_bytes else vectors


def tanh_bytes(x: Tensor) -> Tensor:
    """The whole numbers next to 127 tanh(x), in the dtype of x; the gradient is that of tanh(x), as
    in the code of pplx-embed."""
    squashed = x.tanh()
    rounded = (127 * squashed.detach()).round()
    return rounded + (squashed - squashed.detach()) if squashed.requires_grad else rounded


def pooled(
    hidden_TC: Tensor,
    cu_seqlens: Tensor,
    poolings: Sequence[str],
    *,
    skip_tokens: int | Tensor = 0,
    backend: str | None = None,
) -> Tensor:
    """Token states by one pooling or by several, side by side in their order.

    "mean_sqrt_len_tokens" is the sum divided by the square root of the number of tokens;
    "weightedmean" is sum_n n x_n / sum_n n, the first token's n being 1. As in
    sentence-transformers.

    Args:
        hidden_TC: (T, C).
        cu_seqlens: (B + 1,).
        poolings: M of `POOLINGS`.
        skip_tokens: leading tokens left out (a prompt): of every sequence, or (B,) integers, of
            each. Means and a maximum are of the others, which keep their n; the first token is the
            first of them, the last stays the last.
        backend: of `segment_mean`.

    Returns:
        (B, M * C), float32 or wider; zeros for a sequence without tokens.

    Raises:
        InputError: there is no such pooling.
    """
    lengths = cu_seqlens.diff()
    skip = skip_tokens.to(lengths) if isinstance(skip_tokens, Tensor) else skip_tokens
    found: dict[str, Tensor] = {}
    kept: Tensor | None = None
    if (isinstance(skip, Tensor) or skip) and not set(poolings) <= {"cls", "lasttoken"}:
        kept = _kept(cu_seqlens, hidden_TC.shape[0], skip)

    def mean(by_place: bool) -> Tensor:
        weights = None if kept is None else kept.float()
        if by_place:
            numbers = (places(cu_seqlens, hidden_TC.shape[0]) + 1).float()
            weights = numbers if weights is None else numbers * weights
        return segment_mean(hidden_TC, cu_seqlens, weights, backend=backend)

    for each in poolings:
        if each == "mean":
            found[each] = mean(by_place=False)
        elif each == "weightedmean":
            found[each] = mean(by_place=True)
        elif each == "mean_sqrt_len_tokens":
            plain = found["mean"] if "mean" in found else mean(by_place=False)
            counted = (lengths - skip).clamp(min=0)[:, None].to(plain)
            found[each] = plain * counted.sqrt()
        elif each == "max":
            found[each] = _greatest(hidden_TC, lengths, kept)
        elif each == "cls":
            first = cu_seqlens[:-1] + torch.where(lengths > skip, skip, 0)
            found[each] = _rows(hidden_TC, first, lengths)
        elif each == "lasttoken":
            found[each] = _rows(hidden_TC, cu_seqlens[1:] - 1, lengths)
        else:
            raise InputError(f"pooling {each!r} is not served; served: {', '.join(POOLINGS)}")
    vectors = [found[each] for each in poolings]
    return vectors[0] if len(vectors) == 1 else torch.cat(vectors, dim=-1)


def _kept(cu_seqlens: Tensor, num_tokens: int, skip: int | Tensor) -> Tensor:
    """(T,) bool: tokens that are not left out."""
    if isinstance(skip, Tensor):
        skip = skip[sequence_of_token(cu_seqlens, num_tokens)]
    return places(cu_seqlens, num_tokens) >= skip


def _greatest(hidden_TC: Tensor, lengths: Tensor, kept: Tensor | None) -> Tensor:
    """The maximum of each channel over the tokens that are kept."""
    wide_TC = hidden_TC.to(torch.promote_types(hidden_TC.dtype, torch.float32))
    if kept is not None:
        wide_TC = wide_TC.masked_fill(~kept[:, None], float("-inf"))
    greatest = torch.segment_reduce(
        wide_TC, "max", lengths=lengths, unsafe=True, initial=float("-inf")
    )
    return torch.where(lengths[:, None] > 0, greatest, 0)


def _rows(hidden_TC: Tensor, place: Tensor, lengths: Tensor) -> Tensor:
    """The state of one token of each sequence."""
    # An empty sequence has no place; what it takes instead is left out below.
    place = place.clamp(0, max(hidden_TC.shape[0] - 1, 0))
    rows = hidden_TC if len(hidden_TC) else hidden_TC.new_zeros(1, hidden_TC.shape[1])
    wide = torch.promote_types(hidden_TC.dtype, torch.float32)
    return torch.where(lengths[:, None] > 0, rows[place].to(wide), 0)
