"""Half-precision linear layers in float32, where the processor multiplies halves slowly.

Without instructions for bfloat16 or float16, torch's products in them run at a fraction of the
float32 rate; widening the operands costs little beside a large product. Where it is preferred is
data: `choices`. The sums are float32 either way; the result is rounded once.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .. import launch
from ..activation import activate
from . import choices, onednn
from .product import product

DTYPES = (torch.bfloat16, torch.float16)

MIN_ROWS = 64
"""Below, widening the weight costs more than it saves."""

BLOCK = 1024
"""Rows at a time: what is wide for a moment stays small."""


def preferred(dtype: torch.dtype) -> bool:
    """Whether it comes before `F.linear`: PYENC_LINEAR says no, else the table decides."""
    return dtype in DTYPES and onednn.forced() is None and choices.choice(dtype).prefers("wide")


def linear(x: Tensor, weight: Tensor, bias: Tensor | None, activation: str | None) -> Tensor:
    """activation(x W^T + b), computed in float32 and rounded to x's dtype.

    x (..., C) and weight (F, C) in one dtype; a weight of 1M numbers takes 4 MB more meanwhile.
    """
    wide, offset = weight.float(), None if bias is None else bias.float()
    parts = []
    for rows in x.reshape(-1, x.shape[-1]).split(BLOCK):
        part = product(rows.float(), wide.t(), offset)
        parts.append((part if activation is None else activate(part, activation)).to(x.dtype))
    whole = parts[0] if len(parts) == 1 else torch.cat(parts)
    return launch.shaped(whole, x)
