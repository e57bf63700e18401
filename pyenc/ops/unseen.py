"""Trying something out while others may be looking on: traces and modes do not see it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils._python_dispatch import _disable_current_modes


@contextmanager
def unseen() -> Iterator[None]:
    """Within, tensors are real ones: no fake ones, nothing that a graph or a trace of somebody's
    records, and no gradient."""
    tracing: Any = torch._C
    trace = tracing._get_tracing_state()
    tracing._set_tracing_state(None)
    try:
        with _disable_current_modes(), torch.no_grad():
            yield
    finally:
        tracing._set_tracing_state(trace)
