"""The arithmetic of `backend="reference"`: at least float32, whatever it is given.

The reference of an op computes in the dtype of its tensors (float64: the truth; half: what a naive
computation is off by, which is how tolerances are made). Asked for by name it is the oracle, and an
oracle in float16 would overflow where the kernels, which add up in float32, do not.
"""

from __future__ import annotations

from typing import overload

import torch
from torch import Tensor


@overload
def widen(x: Tensor) -> Tensor: ...
@overload
def widen(x: None) -> None: ...
def widen(x: Tensor | None) -> Tensor | None:
    """x in float32 or wider; differentiable."""
    return None if x is None else x.to(torch.promote_types(x.dtype, torch.float32))
