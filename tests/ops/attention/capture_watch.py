"""What a CUDA graph could not replay, found without a card: fake tensors that meet the host."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Watch(TorchDispatchMode):
    """Notes what reads a value on the host or moves one from it."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.calls = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        self.calls += 1
        given = tree_leaves((args, out))
        devices = {x.device.type for x in given if isinstance(x, torch.Tensor)}
        if "cpu" in devices:
            self.found.append(str(func))
        return out
