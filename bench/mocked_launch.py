"""A card that is not there: Triton's launches go all their way in Python, and then nowhere.

Triton binds, specialises and looks up as it does for a card, finds a kernel that nobody compiled,
and calls its launcher, whose part in C, which would hand the work to the driver, does nothing but
note what it was given where somebody asks. Tensors lie in memory, which nobody looks into.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any, NamedTuple
from unittest import mock

import torch
import triton
from torch import Tensor
from triton.backends.nvidia.driver import CudaLauncher
from triton.compiler import CompiledKernel
from triton.runtime.jit import JITFunction

from bench.ahead_of_time import NoDevice, kernels, target_of
from pyenc.models import encoder
from pyenc.ops import alibi_slopes
from pyenc.ops.attention import triton as attention
from pyenc.ops.attention.bias import relative_position_bucket

ARCHITECTURE = "sm_90"


class Launch(NamedTuple):
    """What a kernel's launcher was called with, by either way to it."""

    kernel: MockedKernel
    grid: tuple[int, int, int]
    stream: int
    arguments: tuple[Any, ...]
    """All parameters of the kernel in order, constants too."""


class _Launcher(CudaLauncher):
    """Triton's own, up to the function in C."""

    def __init__(self) -> None:
        self.num_ctas = 1
        self.global_scratch_size = self.profile_scratch_size = 0
        self.global_scratch_align = self.profile_scratch_align = 1
        self.launch_cooperative_grid = self.launch_pdl = False
        # Of Triton 3.9; 3.6 reads none of these.
        self.gsan_enabled, self.arg_annotations, self.kernel_signature = False, None, None
        self.launch = _nothing


class _Noting(_Launcher):
    """One that writes down what it is called with, in Triton's place."""

    def __init__(self, kernel: MockedKernel, noted: list[Launch]) -> None:
        super().__init__()
        self.kernel, self.noted = kernel, noted

    def __call__(self, x: int, y: int, z: int, stream: int, function: Any, *rest: Any) -> None:
        metadata, _, _, _, *arguments = rest
        assert (function, metadata) == (self.kernel.function, self.kernel.packed_metadata)
        self.noted.append(Launch(self.kernel, (x, y, z), stream, tuple(arguments)))


def _nothing(*_: Any) -> None:
    return None


class MockedKernel(CompiledKernel):
    """What the compiler would have made of a specialisation."""

    def __init__(
        self, fn: Any, key: str, device: int, signature: dict[str, str], noted: list[Launch] | None
    ) -> None:
        self.name, self.key, self.device, self.signature = fn.__name__, key, device, signature
        self.function, self.packed_metadata = object(), (key,)
        self.module = self._module_pid = self.src = None
        self._run = _Launcher() if noted is None else _Noting(self, noted)

    def _init_handles(self) -> None:
        return None

    def __del__(self) -> None:
        return None


@contextlib.contextmanager
def mocked(driver: Any = None, noted: list[Launch] | None = None) -> Iterator[None]:
    """Within, Triton launches on a card that is not there.

    noted: where launches are written down, in order; what is timed writes nothing down.
    """
    active = triton.runtime.driver
    before = active._active

    def compiled(
        self: Any, key: str, signature: dict[str, str], device: int, *_: Any
    ) -> MockedKernel:
        kernel = MockedKernel(self, key, device, signature, noted)
        self.device_caches[device][0][key] = kernel
        return kernel

    for kernel in kernels():
        kernel.device_caches.clear()
    active.set_active(NoDevice(target_of(ARCHITECTURE)) if driver is None else driver)
    try:
        with mock.patch.object(JITFunction, "_do_compile", compiled):
            yield
    finally:
        active._active = before
        for kernel in kernels():
            kernel.device_caches.clear()


@contextlib.contextmanager
def mocked_card(capability: tuple[int, int] = (9, 0)) -> Iterator[None]:
    """Within, every tensor says in Python that it lies on a card.

    Torch's own operations go on to find it in memory. Its matrix product, activations
    and look-up of rows only allocate, and ranges of numbers, slopes and buckets are made in memory.
    The dispatcher knows registered ops by their CPU key, whose implementation is the card's but for
    the guard that makes its card the current one.
    """
    card = torch.device("cuda", 0)
    major, minor = capability
    properties = SimpleNamespace(name="A Card", major=major, minor=minor, multi_processor_count=132)
    with contextlib.ExitStack() as stack:
        for where, what, value in (
            (torch.Tensor, "device", property(lambda self: card)),
            (torch.Tensor, "is_cuda", property(lambda self: True)),
            (torch.Tensor, "get_device", lambda self: 0),
            (torch.cuda, "is_available", lambda: True),
            (torch.cuda, "current_device", lambda: 0),
            (torch.cuda, "get_device_properties", lambda device: properties),
            (torch.cuda, "is_current_stream_capturing", lambda: False),
            (torch.cuda, "_exchange_device", lambda index: index),
            (torch.cuda, "_maybe_exchange_device", lambda index: index),
            (torch, "arange", _in_memory(torch.arange)),
            *((torch.nn.functional, name, _allocated) for name in ("gelu", "silu", "relu")),
            (torch.nn.functional, "linear", _allocated_product),
            (torch.nn.functional, "embedding", _allocated_rows),
            (encoder, "slopes_on", lambda heads, device: alibi_slopes(heads)),
            (attention, "buckets_beside", _buckets),
        ):
            stack.enter_context(mock.patch.object(where, what, value, create=True))
        yield


def _in_memory(make: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def made(*sizes: Any, device: Any = None, **rest: Any) -> Tensor:
        return make(*sizes, **rest)

    return made


def _buckets(table: Tensor, reach: int) -> Tensor:
    distances = torch.arange(-reach, reach + 1)
    return relative_position_bucket(distances, table.shape[0], reach)


def _allocated(x: Tensor, *_: Any, **__: Any) -> Tensor:
    return torch.empty_like(x)


def _allocated_rows(ids: Tensor, weight: Tensor, *_: Any) -> Tensor:
    return weight.new_empty((ids.shape[0], weight.shape[1]))


def _allocated_product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return x.new_empty((x.shape[0], weight.shape[0]))
