"""A model for other processes: pickled once, its tensors beside it in memory that all of them map.

The memory is an anonymous file (Linux's memfd), which no limit of /dev/shm concerns and which goes
with the last process that maps it, however that ends. Each maps it copy-on-write, so that what one
did to its weights would be seen by none of the others. Where there is no such file, the bytes go
through each worker's pipe.
"""

from __future__ import annotations

import io
import mmap
import os
import pickle
from dataclasses import dataclass
from types import FunctionType
from typing import Any

import torch
from torch import Tensor

from ..errors import InputError

ALIGNMENT = 64

PROGRAMS = ("__main__", "__mp_main__")
"""What the program that was started is called as a module; other processes do not import it."""


@dataclass(frozen=True)
class Place:
    """Where a tensor lies in the memory."""

    offset: int
    dtype: torch.dtype
    shape: tuple[int, ...]
    parameter: bool

    @property
    def count(self) -> int:
        return torch.Size(self.shape).numel()


class Sent:
    """An object on its way to other processes.

    Args:
        thing: what they are to have; its tensors, wherever they are, come to them on the CPU, and
            one that is there twice is one there too.

    Attributes:
        head: bytes, for `received`.
        file: the number of the file with the tensors, to be inherited; None without such a file.
        body: the tensors' bytes then, else nothing.

    Raises:
        InputError: it cannot be pickled, or is of a class or function of the program itself, which
            the other processes do not import.
    """

    def __init__(self, thing: Any) -> None:
        pickler = _Pickler()
        try:
            pickler.dump(thing)
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            raise InputError(f"cannot be sent to another process: {error}") from error
        tensors, places = pickler.tensors, pickler.places
        size = max(pickler.size, 1)
        self.head = pickle.dumps((pickler.stream.getvalue(), places, size))
        self.file: int | None = None
        self.body = b""
        if hasattr(os, "memfd_create"):
            self.file = os.memfd_create("pyenc")
            os.ftruncate(self.file, size)
            with mmap.mmap(self.file, size) as memory:
                _write(memory, tensors, places)
        else:
            body = bytearray(size)
            _write(body, tensors, places)
            self.body = bytes(body)

    def close(self) -> None:
        """Let it go here; who has received it keeps it."""
        if self.file is not None:
            os.close(self.file)
        self.file, self.body = None, b""


def received(head: bytes, file: int | None, body: bytes) -> Any:
    """The object, in the other process.

    Raises:
        InputError: it is of a class that cannot be imported here.
    """
    content, places, size = pickle.loads(head)
    memory: Any = bytearray(body)
    if file is not None:
        memory = mmap.mmap(file, size, access=mmap.ACCESS_COPY)
        os.close(file)
    try:
        return _Unpickler(io.BytesIO(content), memory, places).load()
    except (ImportError, AttributeError) as error:
        raise InputError(
            f"cannot be sent to another process, which imports what it needs anew: {error}"
        ) from error


class _Pickler(pickle.Pickler):
    def __init__(self) -> None:
        self.stream = io.BytesIO()
        super().__init__(self.stream, protocol=pickle.HIGHEST_PROTOCOL)
        self.tensors: list[Tensor] = []
        self.places: list[Place] = []
        self.size = 0
        self._known: dict[int, int] = {}

    def reducer_override(self, obj: Any) -> Any:
        if isinstance(obj, (type, FunctionType)) and obj.__module__ in PROGRAMS:
            raise InputError(
                f"cannot be sent to another process: {obj.__qualname__} is defined in the program "
                f"that was started ({obj.__module__}), which others do not import; it must be in a "
                "module"
            )
        return NotImplemented

    def persistent_id(self, obj: Any) -> Any:
        if not isinstance(obj, Tensor):
            return None
        if id(obj) not in self._known:
            self._known[id(obj)] = len(self.tensors)
            parameter = isinstance(obj, torch.nn.Parameter)
            self.tensors.append(obj)
            self.places.append(Place(self.size, obj.dtype, tuple(obj.shape), parameter))
            used = obj.numel() * obj.element_size()
            self.size += -(-used // ALIGNMENT) * ALIGNMENT
        return self._known[id(obj)]


class _Unpickler(pickle.Unpickler):
    def __init__(self, stream: io.BytesIO, memory: Any, places: list[Place]) -> None:
        super().__init__(stream)
        self._memory, self._places = memory, places
        self._made: dict[int, Tensor] = {}

    def persistent_load(self, pid: Any) -> Tensor:
        if pid not in self._made:
            place = self._places[pid]
            tensor = _view(self._memory, place)
            if place.parameter:
                tensor = torch.nn.Parameter(tensor, requires_grad=False)
            self._made[pid] = tensor
        return self._made[pid]


def _write(memory: Any, tensors: list[Tensor], places: list[Place]) -> None:
    for tensor, place in zip(tensors, places, strict=True):
        # The view must be gone before the memory is: nothing keeps it.
        _view(memory, place).copy_(tensor.detach())


def _view(memory: Any, place: Place) -> Tensor:
    if not place.count:
        return torch.empty(place.shape, dtype=place.dtype, device="cpu")
    flat = torch.frombuffer(memory, dtype=place.dtype, count=place.count, offset=place.offset)
    return flat.view(place.shape)
