"""What the launchers of the C++ kernels share: the extension, its codes, checks."""

from __future__ import annotations

import math
from types import ModuleType

import torch
from torch import Tensor

from ..errors import BackendError, InputError
from . import extension
from .freed import check_extent, freed

DTYPE_CODES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
"""The codes of csrc/shared/numeric.h."""


def module_for(op: str) -> ModuleType:
    """The extension, or BackendError with the reason why there is none."""
    module = extension.load()
    if module is None:
        raise BackendError(f"{op}: {extension.why_missing()}")
    return module


def why_not(x: Tensor) -> str | None:
    """Why the kernels cannot serve a tensor, or None."""
    if x.device.type != "cpu":
        return f"the tensors are on {x.device}"
    if x.dtype not in DTYPE_CODES:
        return f"it has no {x.dtype} kernel"
    return extension.missing()


def pointer(tensor: Tensor | None) -> int:
    """The address of the first element; 0 stands for a tensor that is not there.

    Raises:
        InputError: the tensor is there and its memory is not, or less of it than the numbers take.
    """
    if tensor is None:
        return 0
    address: int = tensor.data_ptr()
    if address == 0 and tensor.numel():
        raise freed(tensor)
    # Of a view of a larger tensor this asks for less than it needs: more would cost more than 0.2
    # microseconds, and what is resized is mostly a parameter.
    if tensor.untyped_storage().nbytes() < tensor.nbytes:
        check_extent(tensor)
    return address


def on_large_pages(op: str, x: Tensor) -> Tensor:
    """x, whose storage nobody has written yet: one of 32 MB and more on pages of 2 MiB where Linux
    gives them (csrc/shared/large_pages.h)."""
    storage = x.untyped_storage()
    module_for(op).advise_large_pages(storage.data_ptr(), storage.nbytes())
    return x


def check_memory(op: str, **named: Tensor | None) -> None:
    """Every tensor lies in this process's memory, as strides describe it."""
    for name, tensor in named.items():
        if tensor is not None and not _in_memory(tensor):
            raise _elsewhere(op, name, tensor)


def _in_memory(tensor: Tensor) -> bool:
    return tensor.is_cpu and tensor.layout is torch.strided


def _elsewhere(op: str, name: str, tensor: Tensor) -> InputError:
    return InputError(
        f"{op}: {name} must be a dense CPU tensor, got {tensor.layout} on {tensor.device}"
    )


def check_contiguous(op: str, **named: Tensor | None) -> None:
    """The address of the first element must be enough to find all the others."""
    for name, tensor in named.items():
        if tensor is None:
            continue
        if not _in_memory(tensor):
            raise _elsewhere(op, name, tensor)
        if not tensor.is_contiguous():
            raise InputError(f"{op}: {name} must be contiguous, got strides {tensor.stride()}")


def check_like(
    op: str, name: str, tensor: Tensor, shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    """An exact shape and dtype, in memory."""
    if tensor.shape != shape or tensor.dtype is not dtype:
        raise InputError(
            f"{op}: {name} must be {dtype} of shape {shape}, got {tensor.dtype} "
            f"{tuple(tensor.shape)}"
        )
    if not _in_memory(tensor):
        raise _elsewhere(op, name, tensor)


def as_rows(x: Tensor) -> Tensor:
    """(T, C) of (..., C), whatever is zero; a single number is one row of one."""
    if x.ndim == 2:
        return x
    return x.reshape(math.prod(x.shape[:-1]), x.shape[-1] if x.ndim else 1)


def shaped(rows: Tensor, x: Tensor) -> Tensor:
    """(..., F) as x (..., C) is, of rows (T, F) that nobody else has: no view to autograd, which
    under no_grad nobody could write to afterwards."""
    if x.ndim == 2:
        return rows
    made: Tensor = torch.ops.aten._unsafe_view(rows, (*x.shape[:-1], rows.shape[-1]))
    return made


def rows_in_place(x: Tensor) -> Tensor:
    """`as_rows` with contiguous columns; a view wherever that is what it is."""
    rows = as_rows(x)
    return rows if rows.stride(-1) == 1 or rows.shape[-1] <= 1 else rows.contiguous()


def check_dtype(op: str, name: str, tensor: Tensor) -> None:
    """One of the dtypes that the kernels read."""
    if tensor.dtype not in DTYPE_CODES:
        raise InputError(f"{op}: {name} must be float32, bfloat16 or float16, got {tensor.dtype}")
