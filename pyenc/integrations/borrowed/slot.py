"""What a module that stands in a model's place knows of it, from call to call."""

from __future__ import annotations

import threading
from typing import Any

import torch
from torch import Tensor, nn

from .classes import Standing, take_away
from .on_parameters import Borrowed
from .refusals import Hooked, Refused, warn
from .watched import Watched

_lock = threading.RLock()


class Slot:
    """The encoder on a model's parameters; in a copy or another process, nothing yet."""

    whole_answer = False
    """Whether all that the model answers is wanted, not its states alone."""

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

    def serving(
        self, model: nn.Module, features: dict[str, Tensor], *, has_head: bool
    ) -> Borrowed | None:
        """The encoder, if it is to serve these features now: token ids and their mask, (B, N)."""
        borrowed = self.current(model, has_head=has_head)
        if borrowed is None or not borrowed.serves():
            return None
        if borrowed.hooked():
            self.tell("hooks are set on modules of its model, which would not be run")
            return None
        ids, mask = features["input_ids"], features["attention_mask"]
        row = borrowed.without_gradient
        if row is not None and torch.is_grad_enabled() and bool(((ids == row) & (mask != 0)).any()):
            return None
        if borrowed.head is not None and not borrowed.head.reads_tokens(ids, mask):
            return None
        return borrowed

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
                        self.borrowed = Borrowed(
                            model, has_head=has_head, whole_answer=self.whole_answer
                        )
                    self.refused = None
                except Hooked as reason:  # nothing to remember: hooks are taken off
                    self.tell(str(reason))
                except Refused as reason:
                    self.refused = Watched(model)
                    self.tell(str(reason))
            return self.borrowed


def asks_for_more(model: Any) -> bool:
    """Whether a model's config asks for more than states, or its weights are no parameters."""
    settings = getattr(model, "config", None)
    return bool(
        getattr(settings, "output_hidden_states", False)
        or getattr(settings, "output_attentions", False)
        or getattr(model, "_is_replica", False)  # of DataParallel
    )


def restore(model: Any) -> Any:
    """Undo `pyenc.accelerate`; a model that is not accelerated stays as it is.

    Returns:
        The model.
    """
    for module in list(model.modules()):
        if isinstance(module, Standing):
            module.__dict__.pop("_pyenc", None)
            take_away(module)
    return model


def is_traced() -> bool:
    """Whether a graph is made of what is called, in which nothing may be asked for its value."""
    return torch.compiler.is_compiling() or torch.jit.is_tracing()
