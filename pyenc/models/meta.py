"""Modules without values: shapes and dtypes on the meta device, and no time for filling them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

BEGIN = (name for name in vars(nn.init) if name.endswith("_") and not name.startswith("_"))
RANDOM = frozenset((*(getattr(nn.init, name) for name in BEGIN), Tensor.normal_, Tensor.uniform_))
"""What torch's modules are begun with. Of a tensor without values torch works out in Python what
would come of it, and imports its compiler for that, which takes as long as torch itself."""


class _Unfilled(TorchFunctionMode):
    """Within, nothing on meta is filled at random."""

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func in RANDOM:
            tensor = args[0] if args else (kwargs or {})["tensor"]
            if tensor.device.type == "meta":
                return tensor
        return func(*args, **(kwargs or {}))


@contextmanager
def on_meta() -> Iterator[None]:
    """`torch.device("meta")`, and what is made in it is never filled."""
    with torch.device("meta"), _Unfilled():
        yield
