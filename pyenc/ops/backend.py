"""Which backend serves an op: explicit argument, then `use_backend` / `PYENC_BACKEND`, then `auto`.

An op hands `choose` a table: for each backend it has, a function that says why that backend
cannot serve this call (None: it can). `auto` takes the first that can; every op ends its table
with `torch`, which always can, so `auto` never fails.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from types import TracebackType

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.autograd import forward_ad

from ..errors import BackendError
from ..forking import check_forked
from .constant import constant_result

BACKENDS = ("triton", "cpu", "flash_attn", "torch", "reference")
"""What all ops of a model may be asked for; `reference` is the dense oracle: O(n^2) memory, any
dtype, for checking only."""

OF_LINEAR = ("bf16x6", "bf16x3", "amx", "few_rows", "onednn")
"""Ways of linear layers' products, which a call of such an op may be asked for, and no model:
PYENC_LINEAR asks for them."""

WhyNot = Callable[[], str | None]

_default: str | None = None


class use_backend:  # a function to its users; a class, so that `with` can undo it
    """Set the process-wide default backend; as a context manager, restore the old one after.

    >>> pyenc.use_backend("torch")          # from now on
    >>> with pyenc.use_backend("reference"):  # here only
    ...     hidden = encoder.model(input_ids, attention_mask)

    Args:
        name: one of `BACKENDS`, or "auto" / None for the choice by device and dtype.

    Raises:
        BackendError: the name is unknown, or linear layers' alone.
    """

    def __init__(self, name: str | None) -> None:
        global _default
        check_for_all(name, "use_backend")
        self._previous = _default
        _default = name

    def __enter__(self) -> None:
        return None

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        global _default
        _default = self._previous


def requested_backend(explicit: str | None) -> str:
    """The name asked for: the argument, else `use_backend`, else `PYENC_BACKEND`, else "auto"."""
    if explicit is not None:
        _check_name(explicit, "backend=")
        return explicit
    if _default is not None:
        return _default
    from_environment = os.environ.get("PYENC_BACKEND") or "auto"
    check_for_all(from_environment, "the environment variable PYENC_BACKEND")
    return from_environment


def choose(
    op: str,
    explicit: str | None,
    table: Mapping[str, WhyNot],
    *,
    others: tuple[str, ...] = (),
    of: Iterable[Tensor | None] = (),
) -> str:
    """Name the backend that serves this call of `op`.

    Args:
        op: name of the op, for messages.
        explicit: the `backend` argument of the call.
        table: backend name -> why it cannot serve this call, or None; in order of preference.
        others: backends that may be asked for, for all the ops of a model, and that have no kernel
            of this one: it chooses as for "auto".
        of: tensors by which torch.func takes no derivative through a kernel.

    Raises:
        BackendError: a backend was asked for and cannot serve, or is unknown.
    """
    check_forked()
    name = requested_backend(explicit)
    if name == "auto" or name in others:
        plain = looked_through()
        for candidate, why_not in table.items():
            if plain and candidate != "torch":
                continue
            if candidate != "reference" and why_not() is None:
                return candidate
        raise AssertionError(f"{op}: the table of backends must end with one that always serves")
    if name not in table:
        raise BackendError(
            f"{op} has no {name!r} backend in this version; it has: {', '.join(table)}"
        )
    reason = table[name]()
    if reason is None and name not in ("torch", "reference") and forward_derivative():
        reason = "a derivative goes forward through it, which a kernel has not"
    if reason is None and name not in ("torch", "reference") and _any_followed(of):
        reason = (
            "torch.func takes a derivative through it (grad, vjp, jacrev), which a kernel has not; "
            "torch.autograd.grad goes through all"
        )
    if reason is not None:
        raise BackendError(f"the {name!r} backend cannot serve {op}: {reason}")
    return name


def always() -> str | None:
    """The `why_not` of a backend that serves every call."""
    return None


def explain(table: Mapping[str, WhyNot]) -> dict[str, str]:
    """For every backend of a table: "serves", or the reason why it does not."""
    return {name: why_not() or "serves" for name, why_not in table.items()}


def looked_through() -> bool:
    """Whether torch looks through what is computed, which of a kernel it cannot: derivatives go
    forward, or torch.func transforms the call."""
    return forward_derivative() or transformed()


def transformed() -> bool:
    """Whether torch.func transforms the call, or what torch.compile traces of it."""
    return _transforms_active()


@constant_result
def _transforms_active() -> bool:
    return torch._C._are_functorch_transforms_active()


def jit_traces() -> bool:
    """Whether torch.jit takes a trace of this call, in which sizes are tensors."""
    return torch._C._get_tracing_state() is not None


def _any_followed(of: Iterable[Tensor | None]) -> bool:
    return transformed() and any(x is not None and followed(x) for x in of)


def followed(x: Tensor) -> bool:
    """Whether torch.func takes a derivative by x, or by what it is made of."""
    if compiling():
        return x.view_as(x).requires_grad  # of its own arguments a trace does not say it
    functorch = torch._C._functorch
    while functorch.is_functorch_wrapped_tensor(x):
        # All that is made within is wrapped, of what no derivative is taken by too.
        if functorch.is_gradtrackingtensor(x) and x.requires_grad:
            return True
        x = functorch.get_unwrapped(x)
    return False


def forward_derivative(*tensors: Tensor) -> bool:
    """Whether derivatives are taken forward (torch.func.jvp, forward_ad) at this moment, or, where
    tensors are given, through one of them: ops that torch knows nothing of lose them silently."""
    if compiling() or forward_ad._current_level < 0:
        return False
    return not tensors or any(forward_ad.unpack_dual(x).tangent is not None for x in tensors)


def compiling() -> bool:
    """True while `torch.compile` traces: checks that must read values are left to the op then."""
    return torch.compiler.is_compiling()


def hides_values(*tensors: Tensor | None) -> bool:
    """Whether values cannot be looked at: a graph is traced (by torch.compile or make_fx), or one
    of the tensors has none (on meta, or a fake one). The registered ops look at them themselves."""
    if compiling() or torch._C._get_dispatch_mode(torch._C._TorchDispatchModeKey.PROXY) is not None:
        return True
    return valueless(*tensors)


def valueless(*tensors: Tensor | None) -> bool:
    """Whether one of the tensors is shape and dtype alone: on meta, or a fake one."""
    return any(
        tensor is not None and (tensor.device.type == "meta" or isinstance(tensor, FakeTensor))
        for tensor in tensors
    )


def check_for_all(name: str | None, where: str) -> None:
    """A backend that is asked for in all ops has them.

    Raises:
        BackendError: the name, at `where`, is unknown, or linear layers' alone.
    """
    if name is None or name == "auto" or name in BACKENDS:
        return
    if name in OF_LINEAR:
        raise BackendError(
            f"{where}: {name!r} is a choice of linear layers, which other ops have not; "
            f"PYENC_LINEAR={name} asks for it. Of all ops: auto, {', '.join(BACKENDS)}"
        )
    raise BackendError(f"{where}: unknown backend {name!r}; known: auto, {', '.join(BACKENDS)}")


def _check_name(name: str, where: str) -> None:
    if name not in OF_LINEAR:
        check_for_all(name, where)
