"""Tensors as torch's own attention takes them under autocast."""

from __future__ import annotations

from typing import overload

import torch
from torch import Tensor

from .launch import DTYPE_CODES


@overload
def as_autocast(x: Tensor) -> Tensor: ...
@overload
def as_autocast(x: None) -> None: ...
@overload
def as_autocast(x: Tensor | None) -> Tensor | None: ...
def as_autocast(x: Tensor | None) -> Tensor | None:
    """x in autocast's dtype, where that is on; what is no such tensor is left to the checks."""
    if not isinstance(x, Tensor) or x.device.type not in ("cpu", "cuda"):
        return x
    if x.dtype not in DTYPE_CODES or not torch.is_autocast_enabled(x.device.type):
        return x
    return x.to(torch.get_autocast_dtype(x.device.type))
