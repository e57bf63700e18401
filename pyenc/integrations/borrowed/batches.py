"""A padded batch as packed tokens, and those through an encoder, some sequences at a time; which
batches are.

Shapes: B rows, N padded length, T packed tokens, C channels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ...models import Encoder
from ...models.packing import Packed, pack
from ...ops.backend import transformed
from ...ops.linear import few_rows_gain
from ...ops.registered import PLAIN
from .on_parameters import Borrowed

SMALL = 2**27
"""Tokens, and thirty-two times the padding beside them, times the square of the channels: below it
a batch is computed by the model's own code, for the calls cost more there than the padding does.
Measured where a batch takes as long either way (bench/NOTES.md)."""

SMALL_PACKED = 2**20
"""The same where few rows have products of their own, or take packed weights, and gain."""

BATCH_TOKENS = 4096
"""Tokens that a CPU takes through all layers at a time, where no gradient is wanted: what the
layers make in between stays small, and near."""


def packed_batch(features: dict[str, Any], borrowed: Borrowed) -> Packed:
    """The features' tokens without their padding."""
    config, ids, mask = borrowed.encoder.config, features["input_ids"], features["attention_mask"]
    tokens = int(mask.sum())
    types = None
    if borrowed.token_types and config.type_vocab_size:
        types = features.get("token_type_ids")
    return pack(ids, None if tokens == ids.numel() else mask, types, config.padding_id)


def packed_states(encoder: Encoder, packed: Packed) -> Tensor:
    """(T, C), some sequences at a time where that saves memory."""
    tokens = packed.input_ids.shape[0]
    if torch.is_grad_enabled() or packed.input_ids.device.type != "cpu" or tokens <= BATCH_TOKENS:
        return encoder.hidden(packed)
    bounds = packed.cu_seqlens.tolist()
    hidden_TC: Tensor | None = None
    for first, last in groups(bounds, BATCH_TOKENS):
        part_TC = encoder.hidden(_part(packed, first, last, bounds))
        if hidden_TC is None:
            hidden_TC = part_TC.new_empty(tokens, part_TC.shape[1])
        hidden_TC[bounds[first] : bounds[last]] = part_TC
    assert hidden_TC is not None
    return hidden_TC


def _part(packed: Packed, first: int, last: int, bounds: list[int]) -> Packed:
    """Some of the sequences."""
    rows = slice(bounds[first], bounds[last])

    def some(given: Tensor | None) -> Tensor | None:
        return None if given is None else given[rows]

    return replace(
        packed,
        input_ids=packed.input_ids[rows],
        token_type_ids=some(packed.token_type_ids),
        cu_seqlens=packed.cu_seqlens[first : last + 1] - bounds[first],
        positions=packed.positions[rows],
        position_ids=some(packed.position_ids),
    )


def groups(bounds: Sequence[int], tokens: int) -> Iterator[tuple[int, int]]:
    """[first, last) of sequences that have so many tokens together at the most, or of one alone.

    Args:
        bounds: cumulative lengths, (B + 1,).
    """
    first = 0
    while first < len(bounds) - 1:
        last = first + 1
        while last < len(bounds) - 1 and bounds[last + 1] - bounds[first] <= tokens:
            last += 1
        yield first, last
        first = last


def is_plain(features: dict[str, Any]) -> bool:
    """Whether they are rows of token ids under zeros and ones, (B, N) each.

    Weights, and masks that are added to scores or spread over rows, are for the model's own code.
    """
    ids, mask = features.get("input_ids"), features.get("attention_mask")
    types = features.get("token_type_ids", ids)
    return (
        isinstance(ids, Tensor)
        and isinstance(mask, Tensor)
        and isinstance(types, Tensor)
        and ids.ndim == 2
        and not (ids.is_meta or mask.is_meta or transformed())
        and ids.shape == mask.shape == types.shape
        and type(ones := ((mask == 0) | (mask == 1)).all()) in PLAIN  # a fake one has no value
        and bool(ones)
    )


def is_small(features: dict[str, Any], borrowed: Borrowed) -> bool:
    """Whether the features' tokens, if they have any, are too few to gain without padding."""
    ids, mask = features.get("input_ids"), features.get("attention_mask")
    if not isinstance(ids, Tensor) or not isinstance(mask, Tensor) or ids.device.type != "cpu":
        return False
    counted = mask.count_nonzero()
    if type(counted) not in PLAIN:  # a fake one has no value
        return True
    tokens = int(counted)
    weighed = tokens + 32 * (ids.numel() - tokens)
    encoder = borrowed.encoder
    plainly = not (torch.is_grad_enabled() or torch.is_autocast_enabled("cpu"))
    least = SMALL_PACKED if plainly and few_rows_gain(encoder.dtype) else SMALL
    return weighed * encoder.config.hidden_size**2 < least
