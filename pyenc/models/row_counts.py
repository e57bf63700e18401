"""A batch on a CPU with a few tokens more, so that batches have few numbers of tokens between them.

oneDNN, where linear layers' products are its, compiles a product for each number of rows that it
meets, and keeps it: that took a twentieth of a batch's time, and half a megabyte a layer's product,
2 MB a batch (bench/NOTES.md, "A new number of rows"). Batches hardly ever have the same. What is
added stands behind the texts, as texts of padding that nobody reads.

Shapes: T packed tokens, B texts.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from ..ops.linear import onednn
from .listeners import foreign, listener
from .packing import Packed

FEWEST, MOST = 64, 8192
"""Tokens of a batch: few have kernels of their own, and of more compiling is next to nothing."""

UNIT, PARTS = 4, 128
"""Numbers of tokens are multiples of so many, or of that part of the next power of two: a batch
grows by a 64th at the most from 256 tokens on, and there are 368 numbers."""


def rounded(tokens: int) -> int:
    """The number of tokens that a batch of so many is filled up to."""
    if not FEWEST < tokens <= MOST:
        return tokens
    unit = max(UNIT, (1 << (tokens - 1).bit_length()) // PARTS)
    return -(-tokens // unit) * unit


def pays(model: nn.Module, tokens: int) -> bool:
    """Whether a batch is to be filled: its number of tokens is none of the few, the products are
    compiled by number of rows, and nobody listens to the model's modules, who would see more tokens
    than there are."""
    if rounded(tokens) == tokens:
        return False
    weight = next(model.parameters(), None)
    if weight is None or weight.device.type != "cpu":
        return False
    if not onednn.compiles(weight.dtype):
        return False
    modules = list(model.modules())
    return foreign(modules) is None and listener(modules) is None


def filled(ids: Tensor, cu_seqlens: Tensor, padding_id: int | None) -> tuple[Tensor, Tensor]:
    """Ids (T,) and cu_seqlens (B + 1,) of a batch with texts of padding behind it, none longer than
    its longest."""
    tokens, longest = len(ids), int(cu_seqlens.diff().max())
    more = rounded(tokens) - tokens
    ends = torch.arange(longest, more + longest, longest, dtype=cu_seqlens.dtype, device="cpu")
    padding = ids.new_full((more,), padding_id or 0)
    return torch.cat([ids, padding]), torch.cat([cu_seqlens, tokens + ends.clamp_(max=more)])


def filled_packed(packed: Packed, padding_id: int | None) -> Packed:
    """The same of a batch that `pack` made."""
    tokens = len(packed.input_ids)
    ids, cu_seqlens = filled(packed.input_ids, packed.cu_seqlens, padding_id)
    more, longest = len(ids) - tokens, int(packed.cu_seqlens.diff().max())
    places = torch.arange(more, dtype=packed.positions.dtype, device="cpu") % longest

    def behind(given: Tensor | None, like_the_first: bool) -> Tensor | None:
        # A row of positions that one of the texts has is one that there is.
        if given is None:
            return None
        fill = given[:1] if like_the_first else given.new_zeros(1)
        return torch.cat([given, fill.expand(more)])

    return replace(
        packed,
        input_ids=ids,
        token_type_ids=behind(packed.token_type_ids, like_the_first=False),
        cu_seqlens=cu_seqlens,
        positions=torch.cat([packed.positions, places]),
        position_ids=behind(packed.position_ids, like_the_first=True),
    )
