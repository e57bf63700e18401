"""What several calls of an op make of the same arguments, made once: by the first of them.

The layers of an encoder have lengths, positions and a bias in common, and of each call the kernels
want something made of those: lines of distances, bounds of what may be left out.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar

import torch

from .backend import compiling

Made = TypeVar("Made")

_made: ContextVar[dict[Hashable, tuple[Any, Any]] | None] = ContextVar("made", default=None)


@contextmanager
def sharing() -> Iterator[None]:
    """Within, in this thread, nobody changes the objects that calls have in common, but for tensors
    that count who writes to them."""
    token = _made.set({})
    try:
        yield
    finally:
        _made.reset(token)


def shared(make: Callable[[], Made], key: Hashable, *of: object) -> Made:
    """What `make` gives, where nothing made of the same objects under the same key is at hand.

    It must take no gradient: what `torch.utils.checkpoint` computes again finds nothing made, and
    would do what was not done the first time.

    Args:
        key: what it goes by beside the objects: who asks, and its numbers.
        of: objects, told apart by identity, and tensors also by what was written to them.
    """
    made = None if compiling() else _made.get()
    if made is None:
        return make()
    whole = key, torch.is_inference_mode_enabled(), *map(_state, of)
    if whole not in made:
        # The objects are held, so that no other one comes to their place.
        made[whole] = make(), of
    there: Made = made[whole][0]
    return there


def _state(x: object) -> tuple[int, int]:
    # What was made in inference mode counts nothing.
    counts = isinstance(x, torch.Tensor) and not x.is_inference()
    return id(x), x._version if counts else 0  # type: ignore[attr-defined]
