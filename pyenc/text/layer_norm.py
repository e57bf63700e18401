"""A LayerNorm after pooling: `2_LayerNorm/`, its weights and its `config.json`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from torch import Tensor
from torch.nn import functional

from ..errors import CheckpointError
from ..loading import read_json
from .layer import Layer, read_tensors

EPS = 1e-5
"""torch's, which sentence-transformers leaves as it is."""


@dataclass(frozen=True, eq=False)
class LayerNorm(Layer):
    """(x - mean) / sqrt(variance + 1e-5) * w + b of each vector, in float32."""

    called = "layer norm"

    weight: Tensor  # (C,)
    bias: Tensor  # (C,)

    @property
    def takes(self) -> int:
        return int(self.weight.shape[0])

    @property
    def gives(self) -> int:
        return self.takes

    def __call__(self, x: Tensor) -> Tensor:
        return functional.layer_norm(x, x.shape[-1:], **self._as(x), eps=EPS)


def read_layer_norm(folder: Path) -> LayerNorm:
    """The layer of a folder.

    Raises:
        CheckpointError: a file is missing or damaged, or asks for what is not served.
    """
    path = folder / "config.json"
    config = read_json(path)
    for key in config:
        if key != "dimension":
            raise CheckpointError(f"{path}: {key}: an unknown setting; known: dimension")
    width = config.get("dimension")
    if type(width) is not int or width < 1:
        raise CheckpointError(f"{path}: dimension must be a positive whole number, got {width!r}")
    tensors = read_tensors(folder, {"norm.weight": (width,), "norm.bias": (width,)})
    return LayerNorm(tensors["norm.weight"], tensors["norm.bias"])
