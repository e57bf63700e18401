"""Tensors whose memory is gone, as sharded training frees parameters: told of before torch or a
kernel reads at address 0, which ends the process."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ..errors import InputError

_PLAIN = (Tensor, nn.Parameter)


def check_there(op: str, tensors: Mapping[str, Tensor | None]) -> None:
    """Every given tensor has the memory of its numbers, as far as that can be seen: not in a graph
    that is traced, nor of a class of tensors of its own.

    Raises:
        InputError: names the one that was freed.
    """
    if torch.compiler.is_compiling():
        return
    for name, tensor in tensors.items():
        if type(tensor) not in _PLAIN:
            continue
        try:
            address = tensor.data_ptr()  # type: ignore[union-attr]
        except RuntimeError:  # it has none to be seen: torch.func's, sparse ones
            continue
        if address == 0 and _freed(tensor):  # type: ignore[arg-type]
            raise freed(tensor, f"{op}: {name}")  # type: ignore[arg-type]


def _freed(tensor: Tensor) -> bool:
    """Whether one at address 0 was freed, and is not without numbers or without need of any."""
    return tensor.numel() > 0 and tensor.device.type != "meta" and not tensor._is_zerotensor()


def freed(tensor: Tensor, what: str = "a tensor") -> InputError:
    """The error about one."""
    return InputError(
        f"{what} of shape {tuple(tensor.shape)} has no memory: it was freed, as sharded "
        "training frees parameters (untyped_storage().resize_(0)), and is to be gathered first"
    )


def check_extent(tensor: Tensor) -> None:
    """The numbers that shape and strides speak of are in the tensor's memory.

    Raises:
        InputError: some are not.
    """
    if not tensor.numel():
        return
    last = sum((n - 1) * step for n, step in zip(tensor.shape, tensor.stride(), strict=True))
    needed = (tensor.storage_offset() + last + 1) * tensor.element_size()
    if needed > (there := tensor.untyped_storage().nbytes()):
        raise InputError(
            f"a tensor of shape {tuple(tensor.shape)} with strides {tensor.stride()} needs "
            f"{needed:,} bytes of memory, and its storage has {there:,}: it was resized, and is to "
            "be as large as it was"
        )
