"""Tensors as torch's own attention takes them under autocast, and what it is to leave alone."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any, overload

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


def exactly(device: torch.device) -> AbstractContextManager[Any]:
    """Within, autocast rounds nothing: what the layers of a bias give would be off by whole units
    where scores are far, and an oracle's products would overflow."""
    if device.type not in ("cpu", "cuda") or not torch.is_autocast_enabled(device.type):
        return nullcontext()
    return torch.autocast(device.type, enabled=False)
