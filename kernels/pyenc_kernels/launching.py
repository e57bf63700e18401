"""Launches of kernels that are compiled: what does not change is looked up once.

Triton's own `kernel[grid](...)` binds every argument by its name, asks each what it specialises to
and makes a text of all options, at every launch. A `Plan` has the constants of a kernel; it lets
Triton do that the first time, remembers which compiled kernel came of it, and from then on hands
that one's launcher what Triton would hand it.

A `Launch` also has the grid and the numbers: of a batch's layers, which repeat the same calls on
other tensors, the first makes them for all (`Known`).

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
Compiled = tuple[Any, ...]
"""(its launcher, function and metadata, which that is handed, the kernel itself, to keep it)."""


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


def _aligned(tensors: tuple[Tensor, ...]) -> object:
    """Which addresses are multiples of 16; True: all."""
    addresses = tuple(map(Tensor.data_ptr, tensors))
    if functools.reduce(operator.or_, addresses) % 16:
        return tuple(address % 16 == 0 for address in addresses)
    return True


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
        self.values = tuple(constants[name] for name in names)
        self._driver: Any = None
        self._exact: dict[Any, Compiled] = {}
        self._alike: dict[Any, Compiled] = {}

    def __call__(
        self, grid: Grid, tensors: tuple[Tensor, ...], numbers: tuple[Number, ...]
    ) -> Compiled | None:
        """Launch on the current device and stream; what was launched, where that is known here.

        tensors, numbers: all the kernel's others, in its order. What is a float is one at each
        launch.
        """
        if not _straight or JITFunction.run is not _run or _listening(self.kernel):
            self.kernel[grid](*tensors, *numbers, **self.constants)
            return None
        active = driver.active
        if active is not self._driver:
            self._driver, self._exact, self._alike = active, {}, {}
        device, aligned = active.get_current_device(), _aligned(tensors)
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
                return found
            if len(self._exact) >= REMEMBERED:
                self._exact.clear()
            self._exact[key] = found
        run, function, metadata, _ = found
        x, y, z = (*grid, 1, 1)[:3]
        run(
            x, y, z, active.get_current_stream(device), function, metadata, None, None, None,
            *tensors, *numbers, *self.values,
        )  # fmt: skip
        return found


class Launch:
    """A plan's launch with its grid and numbers, on tensors of ever the same dtypes: of those the
    addresses alone are still looked at."""

    def __init__(self, plan: Plan, grid: Grid, numbers: tuple[Number, ...]) -> None:
        self._plan, self._grid, self._numbers = plan, grid, numbers
        self._after = *numbers, *plan.values
        self._x, self._y, self._z = (*grid, 1, 1)[:3]
        self._driver: Any = None
        self._found: dict[Any, Compiled] = {}

    def __call__(self, tensors: tuple[Tensor, ...]) -> None:
        """As the plan is called."""
        if not _straight or JITFunction.run is not _run or _listening(self._plan.kernel):
            self._plan(self._grid, tensors, self._numbers)
            return
        active = driver.active
        if active is not self._driver:
            self._driver, self._found = active, {}
        device = active.get_current_device()
        key = device, _aligned(tensors)
        found = self._found.get(key)
        if found is None:
            found = self._plan(self._grid, tensors, self._numbers)
            if found is not None:
                self._found[key] = found
            return
        run, function, metadata, _ = found
        run(
            self._x, self._y, self._z, active.get_current_stream(device), function, metadata,
            None, None, None, *tensors, *self._after,
        )  # fmt: skip


Known = dict[Any, Launch]
"""Launches by what else decides them, of calls that are alike in the shapes, strides and dtypes of
their tensors and in their device."""


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
