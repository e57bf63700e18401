"""Launches of kernels that are compiled: what does not change is looked up once.

Triton's own `kernel[grid](...)` binds every argument by its name, asks each what it specialises to
and makes a text of all options, at every launch. A `Plan` has the constants of a kernel; it lets
Triton do that the first time, remembers which compiled kernel came of it, and from then on hands
that one's launcher what Triton would hand it.

What decides which kernel serves is all in a plan's memory: the device, the dtypes, which addresses
are multiples of 16, and of each whole number what Triton may specialise to: being 1, being a
multiple of 16, the bits that it takes. Where Triton is not one that launches as is known here, on
AMD's cards (whose kernels are also specialised to the size of memory), in the interpreter, or where
somebody listens to launches, each is Triton's own.
"""

from __future__ import annotations

import functools
import inspect
import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from triton import knobs
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from . import interpreting
from .configs import Config

REMEMBERED = 4096
"""Calls that a plan knows by their numbers; then it forgets them all."""

ASSERTING = {"debug": True, "sanitize_overflow": False}
"""For a launch: the kernel's own assertions, without those that Triton adds of its own to sums of
integers."""

Number = int | float
Grid = tuple[int, ...]


def _known() -> bool:
    """Whether this Triton calls a compiled kernel as `Plan` does."""
    try:
        source = "".join(inspect.getsource(JITFunction.run).split())
    except (OSError, TypeError):
        return False
    return (
        "kernel.run(grid_0,grid_1,grid_2,stream,kernel.function,kernel.packed_metadata,"
        "launch_metadata,knobs.runtime.launch_enter_hook,knobs.runtime.launch_exit_hook,"
        "*bound_args.values())" in source
    )


_run = JITFunction.run
"""Who puts another in its place sees every launch."""
_straight = torch.version.hip is None and not interpreting() and _known()
_runtime = knobs.runtime
_enter, _exit = _runtime.launch_enter_hook, _runtime.launch_exit_hook
_straight = _straight and hasattr(_enter, "calls") and hasattr(_exit, "calls")
_dtype_of = operator.attrgetter("dtype")


def _listening(kernel: Any) -> bool:
    """Whether somebody is to be told of launches, or they are to be checked."""
    enter, leave = _runtime.launch_enter_hook, _runtime.launch_exit_hook
    if enter is not _enter or leave is not _exit or enter.calls or leave.calls:
        return True
    return bool(_runtime.debug or kernel.pre_run_hooks)


class Plan:
    """A kernel with its constants, ready to be launched.

    constants: of the kernel and of the launch, by name; the kernel's parameters are pointers and
    numbers, then those.
    """

    def __init__(self, kernel: Any, constants: dict[str, Any]) -> None:
        names = [name for name in kernel.arg_names if name in constants]
        if not names or names != list(kernel.arg_names[-len(names) :]):
            raise ValueError(f"{kernel.__name__}: constants must be its last parameters: {names}")
        self.kernel, self.constants = kernel, constants
        self._values = tuple(constants[name] for name in names)
        self._driver: Any = None
        self._exact: dict[Any, tuple[Any, ...]] = {}
        self._alike: dict[Any, tuple[Any, ...]] = {}

    def __call__(
        self, grid: Grid, tensors: tuple[Tensor, ...], numbers: tuple[Number, ...]
    ) -> None:
        """Launch on the current device and stream.

        tensors, numbers: all the kernel's others, in its order. What is a float is one at each
        launch.
        """
        if not _straight or JITFunction.run is not _run or _listening(self.kernel):
            self.kernel[grid](*tensors, *numbers, **self.constants)
            return
        active = driver.active
        if active is not self._driver:
            self._driver, self._exact, self._alike = active, {}, {}
        device = active.get_current_device()
        addresses = tuple(map(Tensor.data_ptr, tensors))
        aligned: object = True
        if functools.reduce(operator.or_, addresses) % 16:
            aligned = tuple(address % 16 == 0 for address in addresses)
        dtypes = tuple(map(_dtype_of, tensors))
        key = device, aligned, numbers, dtypes
        found = self._exact.get(key)
        if found is None:
            alike = device, aligned, tuple(map(specialised, numbers)), dtypes
            found = self._alike.get(alike)
            if found is None:
                compiled = self.kernel[grid](*tensors, *numbers, **self.constants)
                if compiled is not None and active.get_current_target().backend == "cuda":
                    found = compiled.run, compiled.function, compiled.packed_metadata, compiled
                    self._alike[alike] = found
                return
            if len(self._exact) >= REMEMBERED:
                self._exact.clear()
            self._exact[key] = found
        run, function, metadata, _ = found
        x, y, z = grid if len(grid) == 3 else (*grid, 1, 1)[:3]
        run(
            x, y, z, active.get_current_stream(device), function, metadata, None, None, None,
            *tensors, *numbers, *self._values,
        )  # fmt: skip


def specialised(number: Number) -> object:
    """What a kernel may be compiled for of a number: no finer in Triton than here."""
    if type(number) is not int:
        return type(number)
    if number == 1:
        return 1
    return number % 16 == 0, -(2**31) <= number < 2**31, number < 2**63


class Plans:
    """Those of one kernel, by what decides its constants.

    constants: from a configuration and that, by name.
    """

    def __init__(self, kernel: Any, constants: Callable[..., dict[str, Any]]) -> None:
        self._kernel, self._constants = kernel, constants
        self._plans: dict[Any, Plan] = {}

    def of(self, config: Config, *form: object) -> Plan:
        """form: whatever else decides, hashable."""
        key = (config.key, form)
        plan = self._plans.get(key)
        if plan is None:
            made = {**self._constants(config, *form), **config.launch}
            plan = self._plans[key] = Plan(self._kernel, made)
        return plan
