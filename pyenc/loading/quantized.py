"""Weights of eight bits in files: what a quantised encoder is saved as, and read from.

A weight (F, C) stands as int8 (1, F, C) under its published name, its scales as float32 (F,) beside
it, the name ending in `weight_scale`; `config.json` says so under `quantization_config`. The axis
of one is on purpose: transformers passes over a `quant_method` that it does not know and would load
the integers as if they were the weights; a shape that is not the model's it refuses.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import CheckpointError
from ..models.int8 import WIDE, quantized_names
from ..ops.linear.int8 import LEVELS
from .weights import WeightFiles

KEY = "quantization_config"
SAID: dict[str, Any] = {
    "quant_method": "pyenc",
    "linear": "int8",
    "wide": list(WIDE),
    "weights": "int8 (1, F, C) in [-85, 85], a float32 scale a channel beside each",
    "activations": "8 bits, a scale and a zero point a token, found as it comes",
}
"""What `config.json` says of them."""


def split(config: Mapping[str, Any], path: Path) -> tuple[dict[str, Any], str | None]:
    """A `config.json` without our `quantization_config`, and what that says: "int8" or None.

    Another's stays in it: the tensors are refused by their dtype, if they are what it says.

    Raises:
        CheckpointError: ours says something else.
    """
    said = config.get(KEY)
    if not isinstance(said, Mapping) or said.get("quant_method") != SAID["quant_method"]:
        return dict(config), None
    for key in ("linear", "wide"):
        if said.get(key) != SAID[key]:
            raise CheckpointError(
                f"{path}: {KEY}.{key} is {said.get(key)!r:.80}; served: {SAID[key]!r}"
            )
    return {key: value for key, value in config.items() if key != KEY}, SAID["linear"]


class QuantizedFiles(WeightFiles):
    """Weight files with eight bits in them, read as what they stand for.

    Raises:
        CheckpointError: as of `WeightFiles`; or a weight has no scale, or they do not go together.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._bits: set[str] = set()  # so that each is seen as it is stored
        every = set(super().names)
        # Of three axes there are tensors of heads and of convolutions too, as they came.
        self._bits = {
            name
            for name in every
            if len(self.shape(name)) == 3
            and (scale_name(name) in every or self.dtype(name) == torch.int8)
        }
        scales = {scale_name(name) for name in self._bits}
        self._plain = [name for name in super().names if name not in scales]
        for name in sorted(self._bits):
            self.bits(name)

    @property
    def names(self) -> list[str]:
        return self._plain

    def read(self, name: str) -> Tensor:
        if name not in self._bits:
            return super().read(name)
        weight, scale = self.bits(name)
        return weight * scale[:, None]

    def shape(self, name: str) -> tuple[int, ...]:
        return super().shape(name)[name in self._bits :]

    def bits(self, name: str) -> tuple[Tensor, Tensor]:
        """int8 (F, C) and float32 (F,), as stored.

        Raises:
            CheckpointError: it is no such weight.
        """
        beside = scale_name(name)
        if name not in self._bits or beside not in super().names:
            lacks = "is not of eight bits" if name not in self._bits else f"has no {beside!r}"
            raise CheckpointError(
                f"{self.file_of(name)}: tensor {name!r} {lacks}, though config.json has {KEY}"
            )
        weight, scale = super().read(name), super().read(beside)
        if (
            weight.dtype != torch.int8
            or scale.dtype != torch.float32
            or weight.shape[:2] != (1, *scale.shape)
            or bool((weight.int().abs() > LEVELS).any())
            or not bool((scale.isfinite() & (scale >= 0)).all())
        ):
            raise CheckpointError(
                f"{self.file_of(name)}: tensor {name!r} ({weight.dtype}, {tuple(weight.shape)}) "
                f"with {beside!r} ({scale.dtype}, {tuple(scale.shape)}): expected int8 (1, F, C) "
                f"in [-{LEVELS}, {LEVELS}] and finite float32 (F,)"
            )
        return weight[0], scale


def scale_name(name: str) -> str:
    """Of the tensor with a weight's scales."""
    return name + "_scale"


def known_bits(
    files: QuantizedFiles, sources: Mapping[str, tuple[str, ...]], encoder: Any
) -> dict[str, tuple[Tensor, Tensor]]:
    """Layer -> its int8 (F, C) and scale (F,), in memory of their own.

    Raises:
        CheckpointError: the weight of such a layer is not of eight bits, or another one is.
    """
    known: dict[str, tuple[Tensor, Tensor]] = {}
    met: set[str] = set()
    for layer in quantized_names(encoder):
        names = sources[f"{layer}.weight"]
        pieces = [files.bits(name) for name in names]
        met.update(names)
        weight, scale = (torch.cat(parts) for parts in zip(*pieces, strict=True))
        known[layer] = weight, scale
    for name in sorted(files._bits - met):
        raise CheckpointError(
            f"{files.file_of(name)}: tensor {name!r} has eight bits, and is no linear layer's"
        )
    return known


def stored(name: str, weight: Tensor, scale: Tensor) -> dict[str, Tensor]:
    """The tensors of one published name."""
    return {name: weight[None].contiguous(), scale_name(name): scale.clone()}
