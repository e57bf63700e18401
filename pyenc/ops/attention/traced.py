"""Scores and positions that are not there: tensors that remember what is done to them.

A bias of one's own is called with them (map_program.py), and what it does becomes the steps of a
program for the C++ kernels. What it makes of its own tensors alone is computed by torch as ever and
is an input of the program where it meets them; so is what it does to positions without a step for
it, a gather say. The functions that have a step are in traced_functions.py.

Numbers inside are float32. Positions are whole numbers, exact as long as nothing made of them alone
can reach 2^24, which is watched.

Shapes: H heads, i queries of a slab, j keys.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

# The codes of csrc/attention/map.h.
STEPS = (
    "add", "subtract", "multiply", "divide", "larger", "smaller", "at_least", "at_most", "greater",
    "greater_equal", "where", "negative", "magnitude", "exp", "tanh", "sigmoid", "sqrt",
)  # fmt: skip
MOST_WHOLE = 2**24
AXES = "hij"


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
    return x.shape, x.data_ptr(), None if x.is_inference() else x._version


_CPU = torch.device("cpu")
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

    owner: Trace
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


class Trace:
    """Of one call of a bias, for queries at positions i and keys at j, both int64."""

    def __init__(self, heads: int, i: Tensor, j: Tensor) -> None:
        self.shape = (heads, len(i), len(j))
        self.closed = False
        self.root = Value("float")
        self.inputs: dict[Any, Value] = {}
        self.made: list[Value] = []
        self.scores = self.wrap(self.root, self.shape, AXES, placed=True, of_scores=True)
        self.i, self.j = (self._positions(x, axis) for x, axis in ((i, "i"), (j, "j")))

    def _positions(self, x: Tensor, axis: str) -> Traced:
        bound = float(x[-1]) if len(x) else 0.0  # they rise from 0
        numbers = x.to(torch.float32)
        value = Value("int", numbers[:, None] if axis == "i" else numbers, bound=bound)
        self.inputs[axis] = value
        traced = self.wrap(value, (len(x),), axis, placed=False, of_scores=False)
        traced.made_by = x
        return traced

    def wrap(
        self, value: Value, shape: Sequence[int], axes: str, *, placed: bool, of_scores: bool
    ) -> Traced:
        traced = torch.Tensor._make_wrapper_subclass(
            Traced, tuple(shape), dtype=DTYPES[value.kind], device=_CPU
        )
        traced.owner, traced.value, traced.axes, traced.placed = self, value, axes, placed
        traced.of_scores, traced.made_by = of_scores, None
        return traced

    def value(self, x: Any) -> Value:
        """Of something traced, a tensor or a number."""
        if isinstance(x, Traced) and x.owner is self:
            return x.value
        if isinstance(x, Traced):  # kept by the bias
            x = actual(x)
        if isinstance(x, Tensor):
            if x.is_inference():  # whether it is written to nobody could tell
                return self.inputs.setdefault(object(), self._input(x.clone()))
            return self.inputs.setdefault(id(x), self._input(x))
        if isinstance(x, bool) or not isinstance(x, (int, float)):
            raise Unsupported(f"{type(x).__name__} is no input")
        number = torch.tensor(float(x), dtype=torch.float32, device="cpu")
        kind = "int" if isinstance(x, int) else "float"
        return self.inputs.setdefault((kind, repr(x)), Value(kind, number, bound=abs(x)))

    def _input(self, x: Tensor) -> Value:
        if type(x) not in (Tensor, torch.nn.Parameter):
            raise Unsupported(f"a {type(x).__name__} is no input")
        if x.is_complex() or x.device.type != "cpu" or x.layout != torch.strided:
            raise Unsupported(f"a tensor of {x.dtype} on {x.device} is no input")
        if x.dtype == torch.bool:
            return Value("mask", x, bound=1)
        if x.is_floating_point():
            return Value("float", x)
        return Value("int", x, bound=float(x.double().abs().max()) if x.numel() else 0.0)

    def step(self, name: str, *operands: Any, kind: str | None = None) -> Traced:
        """A step's value; its kind is that of what it is of, unless it is given."""
        values = [self.value(x) for x in operands]
        shape, axes, placed = self._place(operands)
        bound = 0.0
        self.check_dtypes(operands, values)
        if kind is None:
            kinds = {v.kind for v in values}
            kind = "float" if "float" in kinds else "int" if "int" in kinds else "mask"
            if kind == "mask" and name in ("add", "subtract", "multiply", "negative"):
                raise Unsupported("arithmetic of conditions alone has no step")
        if kind == "int":
            bound = _bound(name, [v.bound for v in values])
            if not bound < MOST_WHOLE:
                raise Unsupported("whole numbers beyond 2^24 are not exact")
        value = Value(kind, step=(STEPS.index(name), *values), bound=bound)
        self.made.append(value)
        of_scores = any(isinstance(x, Traced) and x.of_scores for x in operands)
        return self.wrap(value, shape, axes, placed=placed, of_scores=of_scores)

    def floating(self, name: str, *operands: Any) -> Traced:
        """The same of functions whose results are no whole numbers, whatever they are of."""
        values = [self.value(x) for x in operands]
        if all(v.kind != "float" for v in values) and torch.get_default_dtype() != torch.float32:
            raise Unsupported("another default dtype than float32 has no step")
        return self.step(name, *operands, kind="float")

    def check_dtypes(self, operands: Sequence[Any], values: Sequence[Value]) -> None:
        """Whether torch would compute in float32 (or whole numbers)."""
        whole = not any(
            isinstance(x, Traced) and v.kind == "float"
            for x, v in zip(operands, values, strict=True)
        )
        for x in operands:
            if isinstance(x, Tensor) and not isinstance(x, Traced) and x.is_floating_point():
                wide = x.dtype == torch.float64 and (whole or x.ndim > 0)
                if wide or (whole and x.dtype != torch.float32):
                    raise Unsupported(f"{str(x.dtype).removeprefix('torch.')} has no step")
            if whole and isinstance(x, float) and torch.get_default_dtype() != torch.float32:
                raise Unsupported("another default dtype than float32 has no step")

    def _place(self, operands: Sequence[Any]) -> tuple[tuple[int, ...], str, bool]:
        """Shape, axes, and whether they are those of (H, i, j), of what is broadcast together."""
        shape: list[int] = []
        axes: list[str] = []
        placed = False
        for x in operands:
            if not isinstance(x, Tensor):
                continue
            with torch._C.DisableTorchFunctionSubclass():
                sizes = x.shape
            if isinstance(x, Traced) and x.owner is self:
                names, placed = x.axes, placed or x.placed
            else:
                names, placed = _axes(sizes), placed or len(sizes) > 0
            more = len(sizes) - len(shape)
            shape, axes = [1] * more + shape, [" "] * more + axes
            for back in range(1, len(sizes) + 1):
                size, axis = sizes[-back], names[-back]
                if size != 1:
                    if shape[-back] not in (1, size):
                        raise Unsupported(f"sizes {shape[-back]} and {size} meet")
                    shape[-back] = size
                if axis != " ":
                    if axes[-back] not in (" ", axis):
                        raise Unsupported("queries along the keys' axis have no step")
                    axes[-back] = axis
        if placed:
            self.check_placed("".join(axes), shape)
        return tuple(shape), "".join(axes), placed

    def check_placed(self, axes: str, shape: Sequence[int]) -> None:
        """Whether dimensions are those of (H, i, j)."""
        fits = len(shape) <= 3 and all(
            axis in (" ", wanted) and size in (1, whole)
            for axis, wanted, size, whole in zip(
                reversed(axes), reversed(AXES), reversed(shape), reversed(self.shape), strict=False
            )
        )
        if not fits:
            raise Unsupported(f"a tensor {tuple(shape)} beside scores {self.shape} has no step")


def _axes(shape: torch.Size) -> str:
    """A tensor's, by place; more than there are fit nowhere."""
    padded = "?" * max(0, len(shape) - 3) + AXES[max(0, 3 - len(shape)) :]
    return "".join(a if n > 1 else " " for a, n in zip(padded, shape, strict=True))


def _bound(name: str, bounds: Sequence[float]) -> float:
    if name in ("add", "subtract"):
        return sum(bounds)
    return math.prod(bounds) if name == "multiply" else max(bounds)
