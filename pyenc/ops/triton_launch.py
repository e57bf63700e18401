"""What ops with Triton kernels share: when those can serve, and where their launchers are."""

from __future__ import annotations

import functools
import importlib
from types import ModuleType

import torch
from torch import Tensor

import pyenc_kernels

from ..forking import check_forked
from .backend import requested_backend
from .constant import constant_result
from .launch import DTYPE_CODES


def why_not(x: Tensor) -> str | None:
    """Why the Triton kernels cannot serve a tensor, or None."""
    if x.dtype not in DTYPE_CODES:
        return f"it has no {x.dtype} kernel"
    return missing(x.device.type) or _garbled(x.dtype)


def serves(x: Tensor, explicit: str | None) -> bool:
    """Whether `choose` comes to these kernels for x, by its device and dtype and by who was asked
    for: on a card unless another was, elsewhere (in the interpreter) if they were."""
    check_forked()
    requested = requested_backend(explicit)
    if requested != "triton" and (requested != "auto" or not x.is_cuda):
        return False
    return x.dtype in DTYPE_CODES and _there("cuda" if x.is_cuda else x.device.type, x.dtype)


def _there(device_type: str, dtype: torch.dtype) -> bool:
    """Whether the kernels can run; that they can is asked once, since tensors of a card are proof
    enough of it."""
    key = device_type, dtype
    if key not in _found and missing(device_type) is None and _garbled(dtype) is None:
        _found.add(key)
    return key in _found


_found: set[tuple[str, torch.dtype]] = set()


@constant_result
def _garbled(dtype: torch.dtype) -> str | None:
    """Why numbers of a dtype would come out wrong, or None: the interpreter multiplies bfloat16 as
    the integers that it keeps them as (which the tests mend for themselves)."""
    if dtype != torch.bfloat16 or not pyenc_kernels.interpreting():
        return None
    from triton.runtime.interpreter import InterpreterBuilder

    if getattr(InterpreterBuilder, "bfloat16_repaired", False):
        return None
    return (
        "Triton's interpreter (TRITON_INTERPRET) computes bfloat16 wrong; float32 and float16 are "
        "right in it"
    )


@functools.cache
def module_for(name: str) -> ModuleType:
    """A module of `pyenc_kernels`, launchers mostly; those import Triton when first asked for."""
    return importlib.import_module(f"pyenc_kernels.{name}")


@constant_result
def missing(device_type: str) -> str | None:
    """Why no Triton kernel can run on devices of a type, or None."""
    reason = pyenc_kernels.unavailable_reason(device_type)
    return too_old() if reason is None and device_type == "cuda" else reason


def too_old() -> str | None:
    """Why NVIDIA cards that torch sees cannot run the kernels, or None: before sm_80 they have
    neither bfloat16 nor the shared memory that backward passes are compiled for."""
    if torch.version.hip:
        return None
    for number in range(torch.cuda.device_count()):
        major, minor = torch.cuda.get_device_capability(number)
        if major < 8:
            return (
                f"the Triton kernels need sm_80 or later, and card {number} "
                f"({torch.cuda.get_device_name(number)}) is sm_{major}{minor}"
                " (CUDA_VISIBLE_DEVICES leaves it out)"
            )
    return None
