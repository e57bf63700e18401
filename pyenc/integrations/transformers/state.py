"""Whether `register` is in force: asked by models, which registration imports."""

from __future__ import annotations

from collections.abc import Callable

_again: Callable[[], None] | None = None


def set_registered(again: Callable[[], None] | None) -> None:
    """Note what would register in another process, or None when nothing is registered any more."""
    global _again
    _again = again


def registered_by() -> Callable[[], None] | None:
    """What a model takes along, so that it is registered where it is unpickled."""
    return _again


def is_registered() -> bool:
    """Whether `register` is in force."""
    return _again is not None
