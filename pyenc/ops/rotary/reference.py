"""The oracle of the rotary embedding, as the formula reads, in the dtype given.

Shapes: T packed tokens, H heads, D head dim, P positions.
"""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor


def rotary_reference(x: Tensor, cos: Tensor, sin: Tensor, positions: Tensor) -> Tensor:
    """x (T, H, D), tables (P, D/2): pair (d, d + D/2) of token t turned by its angle."""
    first, second = rearrange(x, "t h (two d) -> two t h d", two=2)
    c = rearrange(cos[positions], "t d -> t 1 d").to(x.dtype)
    s = rearrange(sin[positions], "t d -> t 1 d").to(x.dtype)
    return torch.cat([first * c - second * s, second * c + first * s], dim=-1)
