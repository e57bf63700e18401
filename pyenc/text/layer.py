"""A layer after pooling: what those of sentence-transformers (`Dense`, `LayerNorm`) share, and how
their weights are read."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..errors import CheckpointError
from ..loading.weights import WeightFiles
from ..loading.wrappers import modern_names
from ..ops.validation import FLOATS


class Layer(ABC):
    """A layer that pooled vectors go through, of tensors in float32; a frozen dataclass.

    Two are equal if all that their fields say is, tensors by their values.
    """

    called: ClassVar[str]
    """What it is, for messages."""

    @property
    @abstractmethod
    def takes(self) -> int:
        """How wide a vector is before it."""

    @property
    @abstractmethod
    def gives(self) -> int:
        """How wide it is after it."""

    @abstractmethod
    def __call__(self, x: Tensor) -> Tensor:
        """(B, takes) to (B, gives), in the dtype of x, float32 or wider."""

    def tensors(self) -> dict[str, Tensor]:
        """Its tensors, by the names of their fields; those that are there."""
        held = {each.name: getattr(self, each.name) for each in fields(self)}  # type: ignore[arg-type]
        return {name: value for name, value in held.items() if isinstance(value, Tensor)}

    def _as(self, x: Tensor) -> dict[str, Tensor]:
        """Its tensors where x is and in its dtype; copies are kept, since the next ones would wait
        for a GPU."""
        own = self.tensors()
        versions = (0 if each.is_inference() else each._version for each in own.values())
        # What is made in inference mode serves no gradient.
        key = x.device, x.dtype, torch.is_inference_mode_enabled(), *versions
        kept = self.__dict__.get("_kept")
        if kept is None or kept[0] != key:
            kept = key, {name: each.to(x) for name, each in own.items()}
            object.__setattr__(self, "_kept", kept)  # frozen, but for this
        tensors: dict[str, Tensor] = kept[1]
        return tensors

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_kept"}

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        pairs = ((getattr(self, f.name), getattr(other, f.name)) for f in fields(self))  # type: ignore[arg-type]
        return all(_equal(*pair) for pair in pairs)


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return torch.equal(a, b)
    return bool(a is b or (type(a) is type(b) and a == b))


def read_tensors(folder: Path, shapes: Mapping[str, tuple[Any, ...]]) -> dict[str, Tensor]:
    """The tensors of a module's folder, in float32: these, and no others.

    Args:
        folder: of the module.
        shapes: name -> the shape that its `config.json` asks for.

    Raises:
        CheckpointError: one lacks, is one too many, is of another shape or dtype, or is not finite.
    """
    files = WeightFiles(folder)
    names = modern_names(files.names, folder)
    if names.keys() != shapes.keys():
        raise CheckpointError(
            f"{files.file_of('')}: tensors {sorted(files.names)}, expected {sorted(shapes)}"
        )
    for name in files.names:
        if files.read(name).dtype not in FLOATS:
            raise CheckpointError(
                f"{files.file_of(name)}: tensor {name!r} is {files.read(name).dtype}, not served"
            )
    return {name: _read(files, name, names[name], shape) for name, shape in shapes.items()}


def _read(files: WeightFiles, name: str, stored: str, shape: tuple[Any, ...]) -> Tensor:
    tensor = files.read(stored).float()
    where = f"{files.file_of(stored)}: tensor {name!r}"
    if tuple(tensor.shape) != shape:
        raise CheckpointError(
            f"{where} has shape {tuple(tensor.shape)}, but config.json asks for {shape}"
        )
    if not bool(torch.isfinite(tensor).all()):
        raise CheckpointError(f"{where} is not finite")
    return tensor.clone()
