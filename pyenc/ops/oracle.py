"""The arithmetic of `backend="reference"`: at least float32, whatever it is given.

The reference of an op computes in the dtype of its tensors (float64: the truth; half: what a naive
computation is off by, which is how tolerances are made). Asked for by name it is the oracle, and an
oracle in float16 would overflow where the kernels, which add up in float32, do not.
"""

from __future__ import annotations

from typing import Any, overload

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map

from .backend import compiling


@overload
def widen(x: Tensor) -> Tensor: ...
@overload
def widen(x: None) -> None: ...
def widen(x: Tensor | None) -> Tensor | None:
    """x in float32 or wider; differentiable."""
    return None if x is None else x.to(torch.promote_types(x.dtype, torch.float32))


def narrow(x: Tensor, dtype: torch.dtype) -> Tensor:
    """An answer in the dtype that it is of, and no view, as the ops of every backend give it: under
    `no_grad` a view is what nobody could write to where gradients are on."""
    x = x.to(dtype)
    return x if compiling() or not x._is_view() else x.clone()


class Widening(TorchFunctionMode):
    """Within, every torch function is given halves as float32: for a bias of the user's own, whose
    code makes what it adds of tensors that may be half."""

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        args, kwargs = tree_map(_widen_half, (args, kwargs or {}))
        return func(*args, **kwargs)


def _widen_half(x: Any) -> Any:
    half = isinstance(x, Tensor) and x.dtype in (torch.float16, torch.bfloat16)
    return widen(x) if half else x
