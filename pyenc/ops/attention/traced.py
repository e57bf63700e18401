"""Scores and positions that are not there: tensors that remember what is done to them.

A bias of one's own is called with them (map_program.py), and what it does becomes the steps of a
program for the C++ kernels. What it makes of its own tensors alone is computed by torch as ever and
is an input of the program where it meets them; so is what it does to positions without a step for
it, a gather say. The functions that have a step are in traced_functions.py.

Shapes: H heads, i queries of a slab, j keys.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor


class Unsupported(Exception):
    """A bias does what no step is for."""


class Value:
    """An input's tensor, or a step and the values it is of.

    kind: "float", "int" (whole numbers, int64 to who asks, of a size of at most `bound`) or "mask".
    """

    def __init__(
        self, kind: str, tensor: Tensor | None = None, step: tuple[Any, ...] = (), bound: float = 0
    ) -> None:
        self.kind, self.tensor, self.step, self.bound = kind, tensor, step, bound
        self._met = None if tensor is None else _state(tensor)

    def check(self) -> None:
        """Raises Unsupported where the input was written to since it was met."""
        if self.tensor is not None and _state(self.tensor) != self._met:
            raise Unsupported("a tensor that is written to after its use is no input")


def _state(x: Tensor) -> tuple[Any, ...]:
    at = id(x) if isinstance(x, FakeTensor) else x.data_ptr()  # which a fake one has not
    return x.shape, at, None if x.is_inference() else x._version


CPU = torch.device("cpu")
DTYPES = {"float": torch.float32, "int": torch.int64, "mask": torch.bool}
FACTS: set[Any] = set()
"""Functions that ask for a shape, a dtype and the like."""
MAKERS: set[Any] = set()
"""Functions that make tensors like their first argument, of other numbers."""
HANDLERS: dict[Any, Callable[..., Any]] = {}
"""What else is served, (trace, *arguments) -> Traced, by torch's function."""


class Traced(torch.Tensor):
    """A value as the bias has it: a tensor without memory, of which nothing can be read.

    axes: of each dimension which of H, i, j runs along it, or a blank; placed: whether it has met a
    tensor, whose axes its dimensions are then; of_scores: whether scores are in it; made_by: the
    call that made it, or what it is, once that was computed.
    """

    owner: Any  # the Trace of the call that it is of
    value: Value
    axes: str
    placed: bool
    of_scores: bool
    made_by: tuple[Any, Sequence[Any], dict[str, Any]] | Tensor | None

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in FACTS:
            with torch._C.DisableTorchFunctionSubclass():
                return func(*args, **kwargs)
        traced = [x for x in args if isinstance(x, Traced)] or list(_all_traced((args, kwargs)))
        if traced[0].owner.closed:  # the bias has kept it
            return func(*actual(args), **actual(kwargs))
        if not torch.is_grad_enabled():
            # As in `torch.no_grad()` and in the forward of an autograd.Function: no gradient goes
            # the way that the values came.
            raise Unsupported("what has no gradient, or one of its own, has no step")
        if func in MAKERS and isinstance(args[0], Traced):
            like = torch.zeros((), dtype=DTYPES[args[0].value.kind], device="cpu")
            return func(like.expand(args[0].shape), *args[1:], **kwargs)
        try:
            made = cls._step(func, args, kwargs)
        except Unsupported:
            if any(x.of_scores for x in _all_traced((args, kwargs))):
                raise
            return _computed(func, args, kwargs)
        if isinstance(made, Traced) and not any(made is x for x in args):
            made.made_by = (func, args, kwargs)
        return made

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        raise Unsupported(f"{func} has no step")

    @staticmethod
    def _step(func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        handler = HANDLERS.get(func)
        trace = next((x.owner for x in (*args, *kwargs.values()) if isinstance(x, Traced)), None)
        if handler is None or trace is None:
            raise Unsupported(f"{_name(func)} has no step")
        try:
            return handler(trace, *args, **kwargs)
        except TypeError as error:  # other arguments than the handler has
            raise Unsupported(f"{_name(func)}: {error}") from error


def _all_traced(x: Any) -> Iterator[Traced]:
    """Those among arguments, however deep."""
    if isinstance(x, Traced):
        yield x
    elif isinstance(x, dict):
        yield from _all_traced(list(x.values()))
    elif isinstance(x, (list, tuple)):
        for one in x:
            yield from _all_traced(one)


def _name(func: Any) -> str:
    return str(getattr(func, "__name__", func))


def _computed(func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """A function's result of positions, computed by torch: new tensors or numbers."""
    name = _name(func)
    if (
        name == "__get__"
        or isinstance(func, (torch._ops.OpOverload, torch._ops.OpOverloadPacket))
        or kwargs.get("out") is not None
        or (name.endswith("_") and not name.startswith("__"))
        or (name.startswith("__i") and name not in ("__invert__", "__index__", "__int__"))
        or name in ("__setitem__", "__dlpack__", "register_hook")
    ):
        raise Unsupported(f"{name} of positions has no step")
    given = [actual(x) for x in _all_traced((args, kwargs))]
    before = [_state(x) for x in given]
    made = func(*actual(args), **actual(kwargs))
    if before != [_state(x) for x in given]:
        raise Unsupported(f"{name} writes over positions, and has no step")
    memory = {x.untyped_storage().data_ptr() for x in given}
    for one in made if isinstance(made, (list, tuple)) else (made,):
        if isinstance(one, (bool, int, float)):
            continue
        # What shares memory could be written to, and the steps so far would not know.
        if type(one) is not Tensor or one.untyped_storage().data_ptr() in memory:
            raise Unsupported(f"{name} of positions has no step")
    return made


def actual(x: Any) -> Any:
    """What traced tensors among arguments stand for, computed after all: of positions, not of
    scores."""
    if isinstance(x, dict):
        return {key: actual(one) for key, one in x.items()}
    if isinstance(x, (list, tuple)):
        every = [actual(one) for one in x]
        return type(x)(*every) if hasattr(x, "_fields") else type(x)(every)
    if not isinstance(x, Traced):
        return x
    if x.made_by is None:
        raise RuntimeError("scores that a bias has kept beyond its call are not there any more")
    if not isinstance(x.made_by, Tensor):
        func, args, kwargs = x.made_by
        x.made_by = func(*actual(args), **actual(kwargs))
    return x.made_by
