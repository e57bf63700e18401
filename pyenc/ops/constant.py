"""Functions whose answer torch.compile takes as it is, marked without loading the compiler.

`torch.compiler.assume_constant_result` does this too, and imports all of `torch._dynamo` to do it,
which takes as long as torch itself: every start of a program would pay it, compiled or not.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any, TypeVar

Function = TypeVar("Function", bound=Callable[..., object])


def constant_result(function: Function) -> Function:
    """`torch.compiler.assume_constant_result`: one answer a process, whoever traces."""
    # What torch sets; tests/ops/test_constant.py compares the two.
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


def by_id(key: int) -> Any:
    """The object whose `id` this is, and which somebody holds.

    The compiler of torch 2.11 hands numbers and strings to a `constant_result`, and no object of a
    user's own; the id of one is a number, which guards the graph.
    """
    return ctypes.cast(key, ctypes.py_object).value
