"""A linear layer after pooling: `2_Dense/`, its weights and its `config.json`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import CheckpointError
from ..loading import read_json
from ..loading.weights import WeightFiles
from ..loading.wrappers import modern_names
from ..ops.validation import FLOATS
from .recipe_keys import check_dense

DENSE_ACTIVATIONS = {"Identity": None, "Tanh": torch.tanh, "ReLU": torch.relu}


@dataclass(frozen=True, eq=False)
class Dense:
    """A linear layer after pooling: activation(x W^T + b), in float32; with a residual, plus x or
    x R^T."""

    weight: Tensor  # (out, in)
    bias: Tensor | None  # (out,)
    activation: str
    use_residual: bool = False
    """Whether what comes in is added to what goes out."""
    residual: Tensor | None = None  # (out, in)
    """By which it is brought to the width of what goes out; None where it has that."""

    def __call__(self, x: Tensor) -> Tensor:
        weight, bias, residual = self._as(x)
        y = torch.nn.functional.linear(x, weight, bias)
        function = DENSE_ACTIVATIONS[self.activation]
        y = y if function is None else function(y)
        if not self.use_residual:
            return y
        return y + (x if residual is None else torch.nn.functional.linear(x, residual))

    @property
    def _tensors(self) -> tuple[Tensor, Tensor | None, Tensor | None]:
        return self.weight, self.bias, self.residual

    def _as(self, x: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """(weight, bias, residual) where x is and in its dtype; a copy is kept, since the next one
        would wait for a GPU."""
        own = [each for each in self._tensors if each is not None]
        versions = (0 if each.is_inference() else each._version for each in own)
        key = x.device, x.dtype, *versions
        kept = self.__dict__.get("_kept")
        if kept is None or kept[0] != key:
            bias, residual = (None if t is None else t.to(x) for t in (self.bias, self.residual))
            kept = key, (self.weight.to(x), bias, residual)
            object.__setattr__(self, "_kept", kept)  # frozen, but for this
        tensors: tuple[Tensor, Tensor | None, Tensor | None] = kept[1]
        return tensors

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_kept"}

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Dense):
            return NotImplemented
        said = (self.activation, self.use_residual) == (other.activation, other.use_residual)
        return said and all(
            a is b or (a is not None and b is not None and torch.equal(a, b))
            for a, b in zip(self._tensors, other._tensors, strict=True)
        )


def read_dense(folder: Path) -> Dense:
    """The layer of a folder.

    Raises:
        CheckpointError: a file is missing or damaged, or asks for what is not served.
    """
    path = folder / "config.json"
    config = read_json(path)
    check_dense(path, config)
    name = str(config.get("activation_function", "torch.nn.modules.activation.Tanh"))
    activation = name.rpartition(".")[2]
    # As there, where another package's class is not trusted, and Tanh is taken for it.
    if not name.startswith("torch.nn.") or activation not in DENSE_ACTIVATIONS:
        raise CheckpointError(
            f"{path}: activation_function {name!r} is not served; served, of torch.nn: "
            f"{', '.join(DENSE_ACTIVATIONS)}"
        )
    files = WeightFiles(folder)
    names = modern_names(files.names, folder)
    shape = (config.get("out_features"), config.get("in_features"))
    use_residual = config.get("use_residual", False)
    wanted = {"linear.weight"}
    wanted |= {"linear.bias"} if config.get("bias", True) else set()
    wanted |= {"residual.weight"} if use_residual and shape[0] != shape[1] else set()
    if names.keys() != wanted:
        raise CheckpointError(
            f"{files.file_of('')}: tensors {sorted(files.names)}, expected {sorted(wanted)}"
        )
    for name in files.names:
        if files.read(name).dtype not in FLOATS:
            raise CheckpointError(
                f"{files.file_of(name)}: tensor {name!r} is {files.read(name).dtype}, not served"
            )

    def read(name: str, shape: tuple[Any, ...]) -> Tensor | None:
        if name not in wanted:
            return None
        tensor = files.read(names[name]).float()
        if tuple(tensor.shape) != shape:
            raise CheckpointError(
                f"{files.file_of(names[name])}: tensor {name!r} has shape {tuple(tensor.shape)}, "
                f"but config.json asks for {shape}"
            )
        if not bool(torch.isfinite(tensor).all()):
            raise CheckpointError(f"{files.file_of(names[name])}: tensor {name!r} is not finite")
        return tensor.clone()

    weight = read("linear.weight", shape)
    assert weight is not None
    bias, residual = read("linear.bias", shape[:1]), read("residual.weight", shape)
    return Dense(weight, bias, activation, use_residual, residual)
