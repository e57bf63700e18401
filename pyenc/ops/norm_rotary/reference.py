"""The oracle of the heads' norm and rotation, as the formulas read, in the dtype given.

Shapes: T packed tokens, H heads, D head dim, P positions.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..norm.reference import add_rms_norm_reference
from ..rotary.reference import rotary_reference


def rms_norm_rotary_reference(
    x: Tensor, gain: Tensor, k_gain: Tensor | None, k_heads: int, cos: Tensor, sin: Tensor,
    positions: Tensor, eps: float,
) -> Tensor:  # fmt: skip
    """x (T, H, D): each head's root-mean-square norm by gain (D,), the last k_heads by k_gain, and
    then turned."""
    queries, keys = x.split((x.shape[1] - k_heads, k_heads), 1)
    normed, _ = add_rms_norm_reference(queries, None, gain, eps)
    if k_gain is not None:
        normed = torch.cat([normed, add_rms_norm_reference(keys, None, k_gain, eps)[0]], 1)
    return rotary_reference(normed, cos, sin, positions)
