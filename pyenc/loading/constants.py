"""Constants that files carry because a module once registered them as buffers.

They are computed here, so a stored one is not needed. It is accepted where it holds what is
computed, to the bit in its own dtype, and kept for saving; one that holds anything else belongs to
another model. A module cast to half rounds a stored table, or the slopes that it is then made of:
either is what is computed, rounded. Slopes may be stored with the sign of the bias. Rotary
frequencies are a power, which no two devices compute to the last bit alike: they are compared to a
millionth.
"""

from __future__ import annotations

import re
from collections.abc import Callable

import torch
from torch import Tensor

from ..models import EncoderConfig
from ..ops import alibi_slopes

Same = Callable[[Tensor, EncoderConfig], bool]

ROWS = 256
"""Rows of an ALiBi table compared at a time: the whole may be gigabytes."""


def constant(reading: str, config: EncoderConfig) -> Same | None:
    """Whether a tensor holds what is computed, if a constant of this encoder is called so.

    Args:
        reading: the tensor's name without prefix.
        config: of the encoder.
    """
    if reading == "embeddings.position_ids":
        return _positions
    if reading == "embeddings.token_type_ids":
        return _zeros
    path, _, last = reading.rpartition(".")
    if config.rotary is not None and last in ("inv_freq", "original_inv_freq"):
        layer = re.search(r"(?:^|\.)layers?\.(\d+)\.", reading)
        return _of_layer(None if layer is None else int(layer[1]))
    if config.position == "alibi" and path.partition(".")[0] in ("", "encoder", "embeddings"):
        return {"alibi": _table, "slopes": _slopes, "alibi_slopes": _slopes}.get(last)
    return None


def alibi_table(config: EncoderConfig, rows: slice, columns: int, head: int) -> Tensor:
    """-slope * |i - j| of one head, float32 (rows, columns), as the published code computes it."""
    places = torch.arange(columns, device="cpu")
    distance = (places[rows, None] - places).abs()
    return -alibi_slopes(config.num_heads)[head] * distance


def rounded_table(
    config: EncoderConfig, rows: slice, columns: int, head: int, dtype: torch.dtype
) -> Tensor:
    """`alibi_table` with slopes and distances rounded to `dtype`, multiplied in it."""
    places = torch.arange(columns, device="cpu")
    distance = (places[rows, None] - places).abs().to(dtype)
    slope = alibi_slopes(config.num_heads)[head].to(dtype)
    # Rounded once: double holds the product of two numbers of any smaller dtype.
    return (-slope.double() * distance.double()).to(dtype)


def _positions(tensor: Tensor, config: EncoderConfig) -> bool:
    count = tensor.shape[-1] if tensor.ndim else 0
    expected = torch.arange(count, device="cpu").to(tensor.dtype)
    return tensor.numel() == count and _equal(tensor.reshape(-1), expected)


def _zeros(tensor: Tensor, config: EncoderConfig) -> bool:
    return _equal(tensor, torch.zeros(tensor.shape, dtype=tensor.dtype, device="cpu"))


def _of_layer(layer: int | None) -> Same:
    """Rotary frequencies, of one layer or of all."""

    def same(tensor: Tensor, config: EncoderConfig) -> bool:
        rotary = config.rotary
        if layer is not None and config.local[layer : layer + 1] == (True,):
            rotary = config.local_rotary or rotary
        if rotary is None or not tensor.is_floating_point():
            return False
        expected = rotary.frequencies(config.head_dim).double()
        kind = torch.finfo(tensor.dtype)
        near = max(1e-6, kind.eps) * expected + kind.smallest_normal * kind.eps
        return tensor.shape == expected.shape and bool(
            ((tensor.double() - expected).abs() <= near).all()
        )

    return same


def _slopes(tensor: Tensor, config: EncoderConfig) -> bool:
    if not tensor.is_floating_point():
        return False
    slopes = alibi_slopes(config.num_heads).to(tensor.dtype).double()
    return any(_equal(tensor.reshape(-1), each) for each in (slopes, -slopes))


def _table(tensor: Tensor, config: EncoderConfig) -> bool:
    heads, n = config.num_heads, tensor.shape[-1] if tensor.ndim else 0
    if not tensor.is_floating_point() or tensor.shape not in ((heads, n, n), (1, heads, n, n)):
        return False
    tables = tensor.reshape(heads, n, n)
    places = [
        (head, slice(start, min(n, start + ROWS)))
        for head in range(heads)
        for start in range(0, n, ROWS)
    ]

    def all_equal(computed: Callable[[slice, int], Tensor]) -> bool:
        return all(_equal(tables[head, rows], computed(rows, head)) for head, rows in places)

    return all_equal(
        lambda rows, head: alibi_table(config, rows, n, head).to(tensor.dtype)
    ) or all_equal(lambda rows, head: rounded_table(config, rows, n, head, tensor.dtype))


def _equal(stored: Tensor, expected: Tensor) -> bool:
    # Some small dtypes cannot be compared as they are; all real ones are exact in float64.
    return not stored.is_complex() and torch.equal(stored.double(), expected.double())
