"""Two factors and what their product is added to: what adapters and differences come to.

On a CPU, and under an autocast of the caller's too, which would make the product in half.
"""

from __future__ import annotations

import torch
from torch import Tensor


def product(left: Tensor, right: Tensor) -> Tensor:
    """left @ right, (rows, r) and (r, width) of one dtype."""
    with torch.autocast("cpu", enabled=False):
        return left @ right


def added(weight: Tensor, left: Tensor, right: Tensor, scaling: float) -> Tensor:
    """weight (rows, width) + scaling * left @ right, all of one dtype."""
    with torch.autocast("cpu", enabled=False):
        return torch.addmm(weight, left, right, alpha=scaling)
