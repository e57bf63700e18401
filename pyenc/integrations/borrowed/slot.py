"""What a module that stands in a model's place knows of it, from call to call."""

from __future__ import annotations

import threading
from typing import Any

import torch
from torch import nn

from .on_parameters import Borrowed
from .refusals import Hooked, Refused, warn
from .watched import Watched

_lock = threading.RLock()


class Slot:
    """The encoder on a model's parameters; in a copy or another process, nothing yet."""

    def __init__(self, borrowed: Borrowed | None = None) -> None:
        self.borrowed = borrowed
        self.refused: Watched | None = None
        """A model as it was when it could not be served, so that it is not tried again."""
        self.told: set[str] = set()

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), ()

    def __deepcopy__(self, memo: dict[int, Any]) -> Slot:
        return type(self)()

    def tell(self, reason: str) -> None:
        """Warn, once."""
        if reason not in self.told:
            self.told.add(reason)
            warn(f"not accelerated for now, by pyenc.accelerate's word: {reason}")

    def current(self, model: nn.Module, *, has_head: bool) -> Borrowed | None:
        """The encoder on what the model's parameters are now, None where there can be none."""
        borrowed = self.borrowed  # which another thread may take away meanwhile
        if borrowed is not None and not borrowed.changed(model):
            return borrowed
        with _lock:
            if self.borrowed is not None and self.borrowed.changed(model):
                self.borrowed = None
            if self.borrowed is None and (self.refused is None or self.refused.changed(model)):
                try:
                    # Nothing that is made here may belong to inference alone.
                    with torch.inference_mode(False):
                        self.borrowed = Borrowed(model, has_head=has_head)
                    self.refused = None
                except Hooked as reason:  # nothing to remember: hooks are taken off
                    self.tell(str(reason))
                except Refused as reason:
                    self.refused = Watched(model)
                    self.tell(str(reason))
            return self.borrowed


def is_traced() -> bool:
    """Whether a graph is made of what is called, in which nothing may be asked for its value."""
    return torch.compiler.is_compiling() or torch.jit.is_tracing()
