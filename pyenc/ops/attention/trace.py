"""What one call of a bias does to scores and positions: the steps, and what they are of.

Numbers inside are float32. Positions are whole numbers, exact as long as nothing made of them alone
can reach 2^24, which is watched.

Shapes: H heads, i queries of a slab, j keys.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from .traced import CPU, DTYPES, Traced, Unsupported, Value, actual

# The codes of csrc/attention/map.h.
STEPS = (
    "add", "subtract", "multiply", "divide", "larger", "smaller", "at_least", "at_most", "greater",
    "greater_equal", "where", "negative", "magnitude", "exp", "tanh", "sigmoid", "sqrt",
)  # fmt: skip
MOST_WHOLE = 2**24
AXES = "hij"


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
            Traced, tuple(shape), dtype=DTYPES[value.kind], device=CPU
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
        # A fake one's program is asked for alone, never run.
        if type(x) not in (Tensor, torch.nn.Parameter, FakeTensor):
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
