"""A linear layer after pooling: `2_Dense/`, its weights and its `config.json`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from ..errors import CheckpointError
from ..loading import read_json
from .layer import Layer, read_tensors
from .recipe_keys import check_dense

DENSE_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor] | None] = {
    "Identity": None,
    "Tanh": torch.tanh,
    "ReLU": torch.relu,
    "CELU": functional.celu,
    "ELU": functional.elu,
    "GELU": functional.gelu,
    "Hardshrink": functional.hardshrink,
    "Hardsigmoid": functional.hardsigmoid,
    "Hardswish": functional.hardswish,
    "Hardtanh": functional.hardtanh,
    "LeakyReLU": functional.leaky_relu,
    "LogSigmoid": functional.logsigmoid,
    "LogSoftmax": partial(functional.log_softmax, dim=-1),
    "Mish": functional.mish,
    "RReLU": functional.rrelu,  # of inference: the mean of its slopes
    "ReLU6": functional.relu6,
    "SELU": functional.selu,
    "SiLU": functional.silu,
    "Sigmoid": torch.sigmoid,
    "Softmax": partial(functional.softmax, dim=-1),
    "Softmin": partial(functional.softmin, dim=-1),
    "Softplus": functional.softplus,
    "Softshrink": functional.softshrink,
    "Softsign": functional.softsign,
    "Tanhshrink": functional.tanhshrink,
}
"""Those of torch.nn without weights that give as many numbers as they take. A file has the class
alone: sentence-transformers makes each with the arguments that it has by default."""


@dataclass(frozen=True, eq=False)
class Dense(Layer):
    """A linear layer after pooling: activation(x W^T + b), in float32; with a residual, plus x or
    x R^T."""

    called = "dense layer"

    weight: Tensor  # (out, in)
    bias: Tensor | None  # (out,)
    activation: str
    """One of `DENSE_ACTIVATIONS`."""
    use_residual: bool = False
    """Whether what comes in is added to what goes out."""
    residual: Tensor | None = None  # (out, in)
    """By which it is brought to the width of what goes out; None where it has that."""

    @property
    def takes(self) -> int:
        return int(self.weight.shape[1])

    @property
    def gives(self) -> int:
        return int(self.weight.shape[0])

    def __call__(self, x: Tensor) -> Tensor:
        own = self._as(x)
        y = functional.linear(x, own["weight"], own.get("bias"))
        function = DENSE_ACTIVATIONS[self.activation]
        y = y if function is None else function(y)
        if not self.use_residual:
            return y
        return y + (functional.linear(x, own["residual"]) if "residual" in own else x)


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
    shape = (config.get("out_features"), config.get("in_features"))
    use_residual = config.get("use_residual", False)
    shapes: dict[str, tuple[Any, ...]] = {"linear.weight": shape}
    if config.get("bias", True):
        shapes["linear.bias"] = shape[:1]
    if use_residual and shape[0] != shape[1]:
        shapes["residual.weight"] = shape
    tensors = read_tensors(folder, shapes)
    return Dense(
        tensors["linear.weight"], tensors.get("linear.bias"), activation, use_residual,
        tensors.get("residual.weight"),
    )  # fmt: skip
