"""What may be done to traced scores and positions (traced.py), by torch's functions and methods."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .trace import Trace
from .traced import FACTS, HANDLERS, MAKERS, Traced, Unsupported

Handler = Callable[..., Any]

_TENSOR: Any = torch.Tensor
FACTS.update(
    (
        *(getattr(_TENSOR, f).__get__ for f in ("shape", "dtype", "device", "ndim", "is_cuda")),
        *(getattr(_TENSOR, f) for f in ("size", "dim", "numel", "__len__", "is_floating_point")),
        torch.numel, torch.is_floating_point,
    )
)  # fmt: skip
MAKERS.update(
    (
        *(getattr(_TENSOR, f"new_{name}") for name in ("zeros", "ones", "full")),
        torch.zeros_like, torch.ones_like, torch.full_like,
    )
)  # fmt: skip


def _handles(*names: str, over: bool = True) -> Callable[[Handler], Handler]:
    """For torch's functions and methods of these names; over: and those that write over their
    first."""

    def register(handler: Handler) -> Handler:
        for name in names:
            for owner in (torch, torch.Tensor, torch.nn.functional, torch.special):
                found = getattr(owner, name, None)
                if callable(found):
                    HANDLERS[found] = handler
            found = getattr(torch.Tensor, f"{name}_", None)
            if over and found is not None:
                HANDLERS[found] = _written_over(handler)
        return handler

    return register


def _written_over(handler: Handler) -> Handler:
    def apply(trace: Trace, x: Any, *args: Any, **kwargs: Any) -> Any:
        made = handler(trace, x, *args, **kwargs)
        if not isinstance(x, Traced) or not x.of_scores:  # it may be a view, or be kept
            raise Unsupported("writing over what are no scores has no step")
        if (made.value.kind, made.shape, made.axes) != (x.value.kind, x.shape, x.axes):
            raise Unsupported("writing something else over what is there has no step")
        x.value = made.value
        return x

    return apply


def _two(step: str, *, turned: bool = False) -> Handler:
    def apply(trace: Trace, a: Any, b: Any, *, alpha: Any = 1) -> Traced:
        if alpha != 1:
            b = trace.step("multiply", b, alpha)
        make = trace.floating if step == "divide" else trace.step
        return make(step, *((b, a) if turned else (a, b)))

    return apply


for _operator, _name, _step in (
    ("add", "add", "add"), ("sub", "sub", "subtract"), ("mul", "mul", "multiply"),
    ("truediv", "div", "divide"),
):  # fmt: skip
    _handles(_name, f"__{_operator}__")(_two(_step))
    _handles(f"__r{_operator}__", over=False)(_two(_step, turned=True))
    HANDLERS[getattr(torch.Tensor, f"__i{_operator}__")] = _written_over(_two(_step))
_handles("subtract")(_two("subtract"))
_handles("multiply")(_two("multiply"))
_handles("divide", "true_divide")(_two("divide"))
_handles("maximum", over=False)(_two("larger"))
_handles("minimum", over=False)(_two("smaller"))


@_handles("rsub", over=False)
def _rsub(trace: Trace, a: Any, b: Any, *, alpha: Any = 1) -> Traced:
    return trace.step("subtract", b, a if alpha == 1 else trace.step("multiply", a, alpha))


def _one(step: str, *, floating: bool) -> Handler:
    def apply(trace: Trace, x: Any) -> Traced:
        return trace.floating(step, x) if floating else trace.step(step, x)

    return apply


_handles("neg", "negative", "__neg__")(_one("negative", floating=False))
_handles("abs", "absolute", "__abs__")(_one("magnitude", floating=False))
for _name in ("exp", "tanh", "sqrt"):
    _handles(_name)(_one(_name, floating=True))
_handles("sigmoid", "expit")(_one("sigmoid", floating=True))


@_handles("square")
def _square(trace: Trace, x: Any) -> Traced:
    return trace.step("multiply", x, x)


@_handles("pow", "__pow__")
def _power(trace: Trace, x: Any, exponent: Any) -> Traced:
    if type(exponent) is float and exponent == 0.5:
        return trace.floating("sqrt", x)
    if type(exponent) is not int or exponent not in (2, 3, 4):
        raise Unsupported(f"a power of {exponent!r} has no step")
    square = trace.step("multiply", x, x)
    if exponent == 2:
        return square
    return trace.step("multiply", square, x if exponent == 3 else square)


@_handles("reciprocal")
def _reciprocal(trace: Trace, x: Any) -> Traced:
    return trace.floating("divide", 1, x)


@_handles("relu")
def _relu(trace: Trace, x: Any, inplace: bool = False) -> Traced:
    if inplace:
        raise Unsupported("relu in place has no step")
    return trace.step("where", trace.step("greater_equal", 0, x, kind="mask"), 0, x)


@_handles("clamp", "clip")
def _clamp(trace: Trace, x: Any, min: Any = None, max: Any = None) -> Traced:
    if min is None and max is None:
        raise Unsupported("clamp without bounds has no step")
    for step, bound in (("at_least", min), ("at_most", max)):
        if isinstance(bound, Tensor):  # which would learn of it
            raise Unsupported("clamp to a tensor has no step")
        if bound is not None:
            x = trace.step(step, x, bound)
    return x  # type: ignore[no-any-return]


@_handles("clamp_min")
def _clamp_min(trace: Trace, x: Any, min: Any) -> Traced:
    return _clamp(trace, x, min)


@_handles("clamp_max")
def _clamp_max(trace: Trace, x: Any, max: Any) -> Traced:
    return _clamp(trace, x, None, max)


@_handles("where", over=False)
def _where(trace: Trace, condition: Any, a: Any, b: Any) -> Traced:
    """The condition's own kind is no number that the result could be of."""
    if trace.value(condition).kind != "mask":
        raise Unsupported("where by what is no condition has no step")
    kinds = [trace.value(x).kind for x in (a, b)]
    kind = "float" if "float" in kinds else "int" if "int" in kinds else "mask"
    return trace.step("where", condition, a, b, kind=kind)


HANDLERS[torch.Tensor.where] = lambda trace, a, condition, b: _where(trace, condition, a, b)


@_handles("masked_fill")
def _masked_fill(trace: Trace, x: Any, mask: Any, value: Any) -> Traced:
    if isinstance(value, Tensor) and value.ndim:
        raise Unsupported("masked_fill wants a number")
    kind = trace.value(x).kind
    if kind == "int" and not isinstance(value, int):
        raise Unsupported("whole numbers filled with others have no step")
    if kind == "mask" and trace.value(value).kind != "mask":
        raise Unsupported("conditions filled with numbers have no step")
    return _where(trace, mask, value, x)


def _compared(step: str, *, turned: bool = False) -> Handler:
    def apply(trace: Trace, a: Any, b: Any) -> Traced:
        return trace.step(step, *((b, a) if turned else (a, b)), kind="mask")

    return apply


_handles("gt", "greater", "__gt__", over=False)(_compared("greater"))
_handles("ge", "greater_equal", "__ge__", over=False)(_compared("greater_equal"))
_handles("lt", "less", "__lt__", over=False)(_compared("greater", turned=True))
_handles("le", "less_equal", "__le__", over=False)(_compared("greater_equal", turned=True))


@_handles("eq", "__eq__", over=False)
def _equal(trace: Trace, a: Any, b: Any) -> Traced:
    both = [trace.step("greater_equal", *x, kind="mask") for x in ((a, b), (b, a))]
    return _and(trace, *both)


@_handles("ne", "not_equal", "__ne__", over=False)
def _unequal(trace: Trace, a: Any, b: Any) -> Traced:
    return _not(trace, _equal(trace, a, b))


def _conditions(trace: Trace, *given: Any) -> None:
    if not all(trace.value(x).kind == "mask" for x in given):
        raise Unsupported("a logical operation on what is no condition has no step")


@_handles("logical_and", "bitwise_and", "__and__", "__rand__", over=False)
def _and(trace: Trace, a: Any, b: Any) -> Traced:
    _conditions(trace, a, b)
    return trace.step("multiply", a, b, kind="mask")


@_handles("logical_or", "bitwise_or", "__or__", "__ror__", over=False)
def _or(trace: Trace, a: Any, b: Any) -> Traced:
    _conditions(trace, a, b)
    return trace.step("larger", a, b, kind="mask")


@_handles("logical_not", "bitwise_not", "__invert__", over=False)
def _not(trace: Trace, a: Any) -> Traced:
    _conditions(trace, a)
    return trace.step("subtract", 1, a, kind="mask")


# ---- the same value under another shape or dtype ----------------------------------------------


def _again(trace: Trace, x: Traced, shape: Any = None, axes: str | None = None) -> Traced:
    shape = tuple(x.shape) if shape is None else shape
    axes = x.axes if axes is None else axes
    return trace.wrap(x.value, shape, axes, placed=x.placed, of_scores=x.of_scores)


@_handles("contiguous", over=False)
def _same(trace: Trace, x: Traced) -> Traced:
    return x


@_handles("clone", over=False)
def _clone(trace: Trace, x: Traced) -> Traced:
    return _again(trace, x)


@_handles("to", "type_as", over=False)
def _to(trace: Trace, x: Any, dtype: Any) -> Tensor:
    """Into float32, or whole numbers as they are; a condition becomes 1 and 0."""
    dtype = dtype.dtype if isinstance(dtype, Tensor) else dtype
    if not isinstance(x, Traced):
        return x.to(dtype)  # type: ignore[no-any-return]
    if x.dtype == dtype:
        return x
    if dtype != torch.float32:
        raise Unsupported(f"{dtype} has no step")
    return trace.step("add", x, 0, kind="float")


@_handles("float", over=False)
def _float(trace: Trace, x: Any) -> Tensor:
    return _to(trace, x, torch.float32)


@_handles("long", over=False)
def _long(trace: Trace, x: Any) -> Tensor:
    return _to(trace, x, torch.int64)


@_handles("unsqueeze", over=False)
def _unsqueeze(trace: Trace, x: Traced, dim: int) -> Traced:
    at = dim if dim >= 0 else x.ndim + 1 + dim
    return _getitem(trace, x, (*[slice(None)] * at, None))


@_handles("expand", "broadcast_to", over=False)
def _expand(trace: Trace, x: Traced, *sizes: Any) -> Traced:
    """The same number along an axis that it had none for."""
    if x.of_scores:  # a view, which what is written over them would have to reach
        raise Unsupported("scores expanded have no step")
    wanted = sizes[0] if len(sizes) == 1 and isinstance(sizes[0], (tuple, list)) else sizes
    more = len(wanted) - x.ndim
    own = [1] * more + list(x.shape)
    shape = [old if new == -1 else new for old, new in zip(own, wanted, strict=True)]
    if more < 0 or any(old not in (1, new) for old, new in zip(own, shape, strict=True)):
        raise Unsupported(f"expanded to {tuple(wanted)}, it has no step")
    axes = " " * more + x.axes
    trace.check_placed(axes, shape)
    return trace.wrap(x.value, shape, axes, placed=True, of_scores=x.of_scores)


@_handles("__getitem__", over=False)
def _getitem(trace: Trace, x: Any, index: Any) -> Traced:
    """Dimensions put in between, of what has met no tensor yet."""
    if not isinstance(x, Traced) or x.placed:
        raise Unsupported("indexing has no step")
    index = index if isinstance(index, tuple) else (index,)
    if not all(i is None or i is Ellipsis or isinstance(i, slice) for i in index):
        raise Unsupported("indexing has no step")
    if Ellipsis in index:
        at = index.index(Ellipsis)
        whole = x.ndim - sum(i is not None for i in index) + 1
        index = (*index[:at], *[slice(None)] * whole, *index[at + 1 :])
    shape: list[int] = []
    axes, left, sizes = "", list(x.axes), list(x.shape)
    for i in index:
        if i is not None and (i.start, i.stop, i.step) != (None, None, None):
            raise Unsupported("indexing has no step")
        shape.append(1 if i is None else sizes.pop(0))
        axes += " " if i is None else left.pop(0)
    return _again(trace, x, (*shape, *sizes), axes + "".join(left))
