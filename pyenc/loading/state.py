"""An encoder's parameters as its files have them, put together, checked and placed."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ..models import EncoderConfig
from ..models.families import Family, in_own_order
from .lora_names import LoraAdapter
from .lora_own import adapted_state
from .strict import check_dtype_served, check_finite
from .target import dtype_of_sums
from .weights import WeightFiles


def read_state(
    files: WeightFiles,
    sources: Mapping[str, tuple[str, ...]],
    family: Family,
    config: EncoderConfig,
    device: torch.device,
    dtype: torch.dtype,
    adapter: LoraAdapter | None = None,
) -> dict[str, Tensor]:
    """Parameter -> tensor, in memory of its own.

    Args:
        files: of the weights.
        sources: parameter -> the names of its rows in the file.
        family: whose they are.
        config: the encoder that they make.
        device, dtype: of what is given.
        adapter: one that has the parameters' own names.

    Raises:
        CheckpointError: a tensor is not finite or has a dtype that is not served, or the adapter
            does not belong to the encoder.
    """
    # An adapter is added to what is not rounded yet.
    read = dtype if adapter is None else dtype_of_sums(dtype)
    state: dict[str, Tensor] = {}
    for parameter, names in sources.items():
        rows = in_own_order(_read(files, names, read), family.row_order(config, parameter))
        state[parameter] = rows if adapter is not None else rows.to(device)
    if adapter is None:
        return state
    adapted = adapted_state(state, adapter, files.folder, dtype)
    return {parameter: tensor.to(device) for parameter, tensor in adapted.items()}


def _read(files: WeightFiles, names: tuple[str, ...], dtype: torch.dtype) -> Tensor:
    """One parameter from its parts, in memory of its own, checked to be finite."""
    pieces = []
    for name in names:
        tensor = files.read(name)
        check_dtype_served(files, name, tensor)
        piece = tensor.to(dtype)
        check_finite(files, name, piece, tensor.dtype)
        pieces.append(piece)
    # A copy of even one piece: a mapped file may change or vanish under us.
    return torch.cat(pieces) if len(pieces) > 1 else pieces[0].clone()
