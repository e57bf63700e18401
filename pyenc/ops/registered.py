"""Registering an op of the kernels with `torch.library`, without what `custom_op` wraps it in.

`torch.library.custom_op` wraps every call for any device and for aliasing; the kernels here serve
tensors of one or two kinds of device and return new ones, so that defining the op and implementing
it for their keys is enough. What that saves was measured: bench/NOTES.md, "What registering costs".
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from ..errors import BackendError
from .backend import compiling
from .graph_keys import say_whose


class KernelOp:
    """An op that has been defined and implemented, still without its fake and its gradient."""

    def __init__(
        self,
        name: str,
        keys: tuple[str, ...],
        function: Callable[..., Any],
        schema: str | None = None,
    ) -> None:
        self.name, self.function = name, function
        schema = schema or torch.library.infer_schema(function, mutates_args=())
        torch.library.define(name, schema)
        whole = _as_torchs_own(function)
        for key in keys:
            torch.library.impl(name, key, _on_its_card(whole) if key == "CUDA" else whole)

    def register_fake(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """What the op returns, by shape and dtype alone."""

        @functools.wraps(function)
        def fake(*given: Any, **named: Any) -> Any:
            say_whose()
            return function(*given, **named)

        torch.library.register_fake(self.name, fake)
        return function

    def register_autograd(
        self,
        backward: Callable[..., Any],
        *,
        setup_context: Callable[..., Any],
        again: bool = False,
    ) -> None:
        """As `torch.library.register_autograd`; the gradient itself is differentiable where `again`
        says so, and else refuses: torch would warn, and take what the kernels made for constants.
        """
        if not again:
            backward = once(self.name, backward)
        torch.library.register_autograd(self.name, backward, setup_context=setup_context)


class _NoFurther(torch.autograd.Function):
    """A gradient as it is; its own gradient is an error."""

    @staticmethod
    def forward(ctx: Any, name: str, grad: Tensor, of: Tensor) -> Tensor:
        ctx.name = name
        return grad.view_as(grad)

    @staticmethod
    def backward(ctx: Any, *_: Any) -> Any:
        raise BackendError(
            f"{ctx.name}: a second derivative (create_graph=True) is not "
            'served, its gradient is made by a kernel; backend="reference" has one'
        )


def once(name: str, backward: Callable[..., Any]) -> Callable[..., Any]:
    """As `torch.autograd.function.once_differentiable`, also where only what the forward was given
    needs a gradient and the gradient of its result does not."""

    @functools.wraps(backward)
    def run(ctx: Any, *grads: Any) -> Any:
        if not torch.is_grad_enabled():
            return backward(ctx, *grads)
        known = (t for t in (*grads, *ctx.saved_tensors) if t is not None and t.requires_grad)
        of = next(known, None)
        with torch.no_grad():
            found = backward(ctx, *grads)
        if of is None:
            return found
        found = found if isinstance(found, tuple) else (found,)
        return tuple(None if x is None else _NoFurther.apply(name, x, of) for x in found)

    return run


def cpu_op(name: str) -> Callable[[Callable[..., Any]], KernelOp]:
    """A decorator: an annotated function as the op `name`, for CPU tensors; it mutates nothing."""
    return lambda function: KernelOp(name, ("CPU",), function)


def kernel_op(name: str) -> Callable[[Callable[..., Any]], KernelOp]:
    """The same for whatever Triton serves too: CUDA, ROCm, and its interpreter on the CPU."""
    return lambda function: KernelOp(name, ("CUDA", "CPU"), function)


def op_anywhere(name: str, schema: str | None = None) -> Callable[[Callable[..., Any]], KernelOp]:
    """The same for every device, where the function itself looks for a kernel or does without.

    schema: "(arguments) -> (results)", where the annotations do not say it.
    """
    return lambda function: KernelOp(name, ("CompositeExplicitAutograd",), function, schema)


PLAIN = frozenset((Tensor, nn.Parameter))
"""What tensors are that do nothing of their own when an op is called on them."""


def plain(*tensors: Tensor) -> bool:
    """Whether a call on these may go around torch's dispatcher, to an op's implementation itself.

    So it may where nobody would hear of it there: no gradient in either direction, no graph being
    traced, no mode, transform, autocast or profiler, no subclass, and no sign that is still to be
    changed.
    """
    return unwatched(*tensors) and not torch.autograd._profiler_enabled()


def unwatched(*tensors: Tensor) -> bool:
    """The same but for a profiler, which only looks on."""
    if torch.is_grad_enabled() or compiling() or forward_ad._current_level >= 0:
        return False
    if torch._C._len_torch_dispatch_stack() or torch._C._len_torch_function_stack():
        return False
    if torch._C._are_functorch_transforms_active() or torch._C._get_tracing_state() is not None:
        return False
    if torch._C._is_any_autocast_enabled():
        return False
    for tensor in tensors:  # noqa: SIM110  (a generator would take twice the time)
        if type(tensor) not in PLAIN or tensor.is_neg():
            return False
    return True


_HERE = nullcontext()


def on_card_of(x: Tensor) -> AbstractContextManager[Any]:
    """Triton launches on the current card, whichever the tensors are on: make it theirs."""
    if not x.is_cuda or x.get_device() == torch.cuda.current_device():
        return _HERE
    return torch.cuda.device(x.device)


_KEYS = torch._C.DispatchKey
_AUTOCAST = torch._C.DispatchKeySet(_KEYS.AutocastCPU) | torch._C.DispatchKeySet(_KEYS.AutocastCUDA)


def _as_torchs_own(function: Callable[..., Any]) -> Callable[..., Any]:
    """As torch's own ops are: what was made there, seen in another shape, is no view to autograd,
    which under no_grad nobody could write to afterwards; and autocast, which has had its way with
    what the op was given, rounds nothing of what is computed inside."""

    @functools.wraps(function)
    def run(*given: Any) -> Any:
        with (
            torch._C._ExcludeDispatchKeyGuard(_AUTOCAST),
            torch._C._AutoDispatchBelowADInplaceOrView(),
        ):
            return function(*given)

    return run


def _on_its_card(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def run(first: Tensor, *rest: Any) -> Any:
        with on_card_of(first):
            return function(first, *rest)

    return run
