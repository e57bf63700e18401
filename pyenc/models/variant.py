"""What a registered variant is called, and whether two are one that was defined again."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from torch import nn

Variant = Callable[..., nn.Module]
"""Called with the number of heads and the fields."""


def called(variant: Variant) -> str:
    """A name for messages, of what a `functools.partial` calls with what it gives."""
    if isinstance(variant, functools.partial):
        given = [*map(repr, variant.args), *(f"{k}={v!r}" for k, v in variant.keywords.items())]
        return f"partial({', '.join([called(variant.func), *given])})"
    name = getattr(variant, "__qualname__", type(variant).__qualname__)
    return f"{getattr(variant, '__module__', '?')}.{name}"


def same_variant(a: Variant, b: Variant) -> bool:
    """Whether `b` is `a`, or what a cell of a notebook that ran again makes of it.

    By its name, where that tells it from others. A lambda's does not, nor that of what a function
    defines: those are the same where their code and what it closes over are.
    """
    if a is b:
        return True
    if isinstance(a, functools.partial) or isinstance(b, functools.partial):
        return (
            isinstance(a, functools.partial)
            and isinstance(b, functools.partial)
            and same_variant(a.func, b.func)
            and _equal((a.args, a.keywords), (b.args, b.keywords))
        )
    if type(a) is not type(b) or called(a) != called(b):
        return False
    if not hasattr(a, "__qualname__"):  # an object with __call__
        return _equal(a, b)
    if "<" not in called(a):
        return True
    if isinstance(a, type):
        ours, theirs = vars(a), vars(b)
        names = [name for name in ours.keys() | theirs.keys() if _has_code(ours, theirs, name)]
        return all(_same_code(ours.get(name), theirs.get(name)) for name in names)
    return _same_code(a, b)


def _has_code(ours: Any, theirs: Any, name: str) -> bool:
    return hasattr(ours.get(name), "__code__") or hasattr(theirs.get(name), "__code__")


def _same_code(a: Any, b: Any) -> bool:
    """Two functions: their code, defaults, and the values that they close over."""
    if getattr(a, "__code__", None) != getattr(b, "__code__", 0):
        return False
    return _equal(_bound(a), _bound(b))


def _bound(function: Any) -> tuple[Any, ...]:
    cells = []
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        try:
            value = cell.cell_contents
        except ValueError:  # not yet filled
            value = None
        # For super(): the class that is being compared.
        cells.append(None if name == "__class__" else value)
    return function.__defaults__, function.__kwdefaults__, cells


def _equal(a: Any, b: Any) -> bool:
    try:
        return bool(a == b)
    except Exception:  # of any class: it is the value's own, an array's say
        return False
