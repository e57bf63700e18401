"""What ops with Triton kernels share: when those can serve, and where their launchers are."""

from __future__ import annotations

import functools
import importlib
from types import ModuleType

from torch import Tensor

import pyenc_kernels

from .constant import constant_result
from .launch import DTYPE_CODES


def why_not(x: Tensor) -> str | None:
    """Why the Triton kernels cannot serve a tensor, or None."""
    if x.dtype not in DTYPE_CODES:
        return f"it has no {x.dtype} kernel"
    return missing(x.device.type)


@functools.cache
def module_for(name: str) -> ModuleType:
    """A module of `pyenc_kernels`, launchers mostly; those import Triton when first asked for."""
    return importlib.import_module(f"pyenc_kernels.{name}")


@constant_result
def missing(device_type: str) -> str | None:
    """Why no Triton kernel can run on devices of a type, or None."""
    return pyenc_kernels.unavailable_reason(device_type)
