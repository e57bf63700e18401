"""A LoRA adapter that was trained on an `Encoder`: it has the names of its parameters, some of
which stand in several tensors of the base's files, or in another order of rows."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from ..errors import CheckpointError
from .lora import AdaptedFiles
from .lora_names import LoraAdapter, matched
from .strict import check_finite, check_shape
from .target import dtype_of_sums
from .weights import WeightFiles


class _State(WeightFiles):
    """Parameters of an encoder as if they were read from files."""

    def __init__(self, state: Mapping[str, Tensor], folder: Path) -> None:
        self.folder = folder
        self._state = state

    @property
    def names(self) -> list[str]:
        return list(self._state)

    @property
    def paths(self) -> list[Path]:
        return []

    def file_of(self, name: str) -> Path:
        return self.folder

    def read(self, name: str) -> Tensor:
        return self._state[name]

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._state[name].shape)


def adapted_state(
    state: Mapping[str, Tensor], adapter: LoraAdapter, folder: Path, dtype: torch.dtype
) -> dict[str, Tensor]:
    """An encoder's parameters with an adapter in them that has their names.

    Args:
        state: by name, on a CPU, float32 or wider.
        adapter: as it was opened.
        folder: of the base, for messages.
        dtype: of what is given back.

    Raises:
        CheckpointError: as of `AdaptedFiles`; or a tensor of it is none of the encoder's.
    """
    files = AdaptedFiles(matched(adapter, _State(state, folder)), dtype_of_sums(dtype))
    for name in files.names:
        if name not in state:
            raise CheckpointError(
                f"{files.file_of(name)}: tensor {name!r} is no parameter of the encoder in {folder}"
            )
        check_shape(files, name, tuple(state[name].shape))
    adapted = {name: files.read(name).to(dtype) for name in state}
    for name, tensor in adapted.items():
        check_finite(files, name, tensor, dtype)
    return adapted
