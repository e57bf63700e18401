"""Whether an attribute is what a module made anew has there."""

from __future__ import annotations

from collections.abc import Mapping
from types import MethodType
from typing import Any

import numpy as np


def alike(ours: Any, right: Any, rebuilt: bool) -> bool:
    """Whether two values are equal, whatever `==` makes of them.

    Args:
        ours: an attribute's value, without tensors.
        right: what a module that was made anew has there.
        rebuilt: whether functions and objects that cannot be compared count as equal where they are
            of one type: a variant's fields make them again.
    """
    if ours is right:
        return True
    if isinstance(ours, np.ndarray) or isinstance(right, np.ndarray):
        return _arrays(ours, right)
    if type(ours) is type(right) and isinstance(ours, (list, tuple)):
        return len(ours) == len(right) and all(
            alike(a, b, rebuilt) for a, b in zip(ours, right, strict=True)
        )
    if isinstance(ours, Mapping) and isinstance(right, Mapping):
        return ours.keys() == right.keys() and all(
            alike(ours[key], right[key], rebuilt) for key in ours
        )
    if rebuilt and type(ours) is type(right):
        if isinstance(ours, MethodType):
            return ours.__func__ is right.__func__
        if getattr(type(ours), "__eq__", None) is getattr(object, "__eq__", None):
            return True
    try:
        # What is not equal to itself, NaN, is alike where neither is.
        return bool(ours == right) or (bool(ours != ours) and bool(right != right))
    except Exception:  # of any class: it is the value's own
        return rebuilt and type(ours) is type(right)


def _arrays(ours: Any, right: Any) -> bool:
    if not isinstance(ours, np.ndarray) or not isinstance(right, np.ndarray):
        return False
    if ours.dtype != right.dtype:
        return False
    numbers = ours.dtype.kind in "fc"
    return bool(np.array_equal(ours, right, equal_nan=numbers))
