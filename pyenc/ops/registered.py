"""Registering an op of the CPU kernels with `torch.library`, at half the price of `custom_op`.

`torch.library.custom_op` wraps every call for any device and for aliasing; the kernels here serve
CPU tensors and return new ones, so that defining the op and implementing it for that one key is
enough, and takes some 35 us off a call.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


class CpuOp:
    """An op that has been defined and implemented, still without its fake and its gradient."""

    def __init__(self, name: str, function: Callable[..., Any]) -> None:
        self.name = name
        torch.library.define(name, torch.library.infer_schema(function, mutates_args=()))
        torch.library.impl(name, "CPU", function)

    def register_fake(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """What the op returns, by shape and dtype alone."""
        torch.library.register_fake(self.name, function)
        return function

    def register_autograd(
        self, backward: Callable[..., Any], *, setup_context: Callable[..., Any]
    ) -> None:
        """As `torch.library.register_autograd`."""
        torch.library.register_autograd(self.name, backward, setup_context=setup_context)


def cpu_op(name: str) -> Callable[[Callable[..., Any]], CpuOp]:
    """A decorator: an annotated function as the op `name`, for CPU tensors; it mutates nothing."""
    return lambda function: CpuOp(name, function)
