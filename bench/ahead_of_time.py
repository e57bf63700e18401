"""Compiles Triton kernels for GPUs that are not here, and says what they take of one.

The launchers themselves run, on CPU tensors and with a driver that has no device: Triton
specialises exactly as it would for a call, compiles, and launches nothing. Registers, spills and
warnings are the assembler's own words, which a cache does not keep: it is a fresh one of this
process, which remembers what was said of each kernel.
"""

from __future__ import annotations

import contextlib
import functools
import io
import re
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any
from unittest import mock

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import JITFunction

from bench import machine_code

SHARED_LIMIT = {
    "sm_80": 166912,
    "sm_86": 101376,
    "sm_89": 101376,
    "sm_90": 232448,
    "sm_100": 232448,
}
"""Bytes of shared memory a program may have."""
GFX_SHARED_LIMIT = 65536
ARCHITECTURES = (*SHARED_LIMIT, "gfx942")


@dataclass(frozen=True)
class Compiled:
    """One kernel for one architecture."""

    kernel: str
    architecture: str
    warps: int
    registers: int
    maxnreg: int | None
    """As the configuration says."""
    spilled_bytes: int
    spills_in_loops: int
    """Instructions of those that spill, in `loops`."""
    shared_bytes: int
    warnings: tuple[str, ...]
    """The assembler's, by number. C7515: all matrix products of the kernel wait for one another."""
    loops: tuple[int, ...]
    """Instructions in a turn of each loop that multiplies matrices; of NVIDIA's cards alone."""
    matrix_instructions: tuple[str, ...]

    @property
    def fits(self) -> bool:
        return self.shared_bytes <= SHARED_LIMIT.get(self.architecture, GFX_SHARED_LIMIT)

    def row(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def of(cls, row: dict[str, Any]) -> Compiled:
        """From what `row` gave, written as JSON and read again."""
        return cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in row.items()})


class NoDevice:
    """As much of a driver as compiling asks for."""

    def __init__(self, target: GPUTarget) -> None:
        self.target = target

    def get_current_target(self) -> GPUTarget:
        return self.target

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int | None = None) -> int:
        return 0

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")


def target_of(architecture: str) -> GPUTarget:
    if architecture.startswith("sm_"):
        return GPUTarget("cuda", int(architecture.removeprefix("sm_")), 32)
    return GPUTarget("hip", architecture, 64)


def compile_for(
    architecture: str,
    call: Callable[[], object],
    keys: tuple[str, ...],
    *,
    only: str | None = None,
    keep: bool = False,
) -> list[Compiled]:
    """What every kernel that `call` launches takes on that architecture, in order of launch.

    keys: where configurations are looked for (`pyenc_kernels.configs.keys_of`). only: the name of
    the one kernel that is compiled. keep: what is compiled goes to Triton's own cache, where a
    launch of the same on a card finds it.
    """
    found: dict[str, Compiled] = {}
    run = JITFunction.run

    def compile_only(self: Any, *args: Any, grid: Any, warmup: bool, **options: Any) -> Any:
        if only is not None and self.fn.__name__ != only:
            return None
        log = io.StringIO()
        with contextlib.redirect_stdout(log):
            kernel = run(self, *args, grid=(1, 1, 1), warmup=True, **options)
        if kernel.hash not in _reports:  # else it was compiled before and has no log
            _reports[kernel.hash] = _report(kernel, architecture, log.getvalue())
        found[kernel.hash] = _reports[kernel.hash]
        return kernel

    with _compiling(architecture, keys, keep), mock.patch.object(JITFunction, "run", compile_only):
        call()
    return list(found.values())


_reports: dict[str, Compiled] = {}
"""By hash, of all that this process has compiled."""


@functools.cache
def _cache() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="pyenc-aot-")


@contextlib.contextmanager
def _compiling(architecture: str, keys: tuple[str, ...], keep: bool) -> Iterator[None]:
    active = triton.runtime.driver
    before = getattr(active, "_active", None)
    with contextlib.ExitStack() as stack:
        if keep:  # what is there from another time would be read, and has no log
            stack.enter_context(triton.knobs.compilation.scope())
            triton.knobs.compilation.always_compile = True
        else:
            stack.enter_context(triton.knobs.cache.scope())
            triton.knobs.cache.dir = _cache().name
        stack.enter_context(triton.knobs.nvidia.scope())
        triton.knobs.nvidia.dump_ptxas_log = True
        active.set_active(NoDevice(target_of(architecture)))
        stack.enter_context(mock.patch("pyenc_kernels.configs.keys_of", return_value=keys))
        for kernel in kernels():
            kernel.device_caches.clear()
        try:
            yield
        finally:
            active._active = before
            for kernel in kernels():
                kernel.device_caches.clear()


def kernels() -> list[Any]:
    """Every kernel that has been imported: each keeps what it compiled, by device alone."""
    import gc

    return [x for x in gc.get_objects() if type(x) is JITFunction]


def _report(kernel: Any, architecture: str, log: str) -> Compiled:
    def number(pattern: str, text: str) -> int:
        match = re.search(pattern, text)
        if match is None:
            raise RuntimeError(
                f"{kernel.metadata.name} for {architecture}: no {pattern!r} in the log"
            )
        return int(match[1])

    warnings: list[str] = []
    loops: list[int] = []
    spills = 0
    if architecture.startswith("sm_"):
        code = kernel.asm["ptx"]
        warnings = sorted(set(re.findall(r"\((C\d{4})\)", log)))
        registers = number(r"Used (\d+) registers", log)
        spilled = number(r"(\d+) bytes spill stores", log)
        pattern = r"wgmma\.mma_async|tcgen05\.mma|mma\.sync"
        # The loops looked at are those that multiply matrices, and to disassemble takes long.
        if re.search(pattern, code):
            found = machine_code.loops(machine_code.disassembled(kernel.asm["cubin"]))
            loops = [loop.instructions for loop in found]
            spills = sum(loop.spills for loop in found)
    else:
        code = kernel.asm["amdgcn"]
        registers = number(r"\.vgpr_count:\s*(\d+)", code)
        spilled = 4 * number(r"\.vgpr_spill_count:\s*(\d+)", code)
        pattern = r"v_mfma_\w+"
    return Compiled(
        kernel.metadata.name, architecture, kernel.metadata.num_warps, registers,
        getattr(kernel.metadata, "maxnreg", None), spilled, spills,
        kernel.metadata.shared, tuple(warnings), tuple(loops),
        tuple(sorted(set(re.findall(pattern, code)))),
    )  # fmt: skip
