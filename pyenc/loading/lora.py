"""A LoRA adapter of peft, put on the weights of its base as they are read.

`AdaptedFiles` has the base's names, and is read as the files would be that peft's
`merge_and_unload()` and `save_pretrained()` write. An adapter that was trained on an `Encoder` has
the names of its parameters instead, and is put on those (`adapted_state`).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from ..errors import CheckpointError
from .lora_names import FACTORS, WRAPPER, Change, renaming, sorted_tensors
from .lora_settings import read_settings
from .quantized import QuantizedFiles
from .strict import check_dtype_served, check_finite, check_shape
from .weights import WeightFiles
from .wrappers import adapted, modern_names

FILES = ("adapter_model.safetensors", "adapter_model.bin")


class AdaptedFiles(WeightFiles):
    """The base's weight files with an adapter's changes in them.

    Args:
        base: the weights that were adapted.
        folder: of the adapter.

    Raises:
        CheckpointError: the adapter is damaged, asks for what is not served, or does not belong to
            the base; the message names the key or tensor.
    """

    def __init__(self, base: WeightFiles, folder: Path) -> None:
        self.folder = base.folder
        self.settings = read_settings(folder)
        self._base = base
        self._adapter = WeightFiles(folder, FILES)
        changes, whole = sorted_tensors(self._adapter)
        if not changes:
            some = ", ".join(self._adapter.names[:3]) or "none"
            raise CheckpointError(
                f"{self._adapter.file_of('')}: no tensors of LoRA; expected names such as "
                f"{WRAPPER}<module>.lora_A.weight, got {some}"
            )
        self._modern = modern_names(base.names, base.folder)
        rename = renaming({*changes, *(name.rpartition(".")[0] for name in whole)}, self._modern)
        self._whole: dict[str, str] = {}
        """Stored name, or a new one -> the adapter's tensor in its place."""
        for name, stored in whole.items():
            module, dot, last = name.rpartition(".")
            modern = f"{rename(module)}{dot}{last}"
            self._whole[self._modern.get(modern, modern)] = stored
        self._change: dict[str, Change] = {}
        """Stored name of a weight -> what is done to it."""
        self._bias: dict[str, Change] = {}
        for module, change in changes.items():
            self._place(rename(module), change)

    def _wrong(self, name: str, why: str) -> CheckpointError:
        return CheckpointError(f"{self._adapter.file_of(name)}: tensor {name!r} {why}")

    def _place(self, here: str, change: Change) -> None:
        """Note what a change is made to, by its module's path in the base."""
        module, first = change.module, next(iter(change.tensors.values()))
        weight = self._modern.get(f"{here}.weight")
        if weight is None:
            raise self._wrong(
                first,
                f"changes {module!r}, which {self.folder} has no weight of: the adapter is of "
                "another model",
            )
        if not self.settings.has(module):
            raise self._wrong(
                first,
                f"changes {module!r}, which is not among target_modules of {self.settings.path}; "
                "which of the two counts is not known",
            )
        if weight in self._change:
            other = self._change[weight].module
            raise self._wrong(
                first,
                f"changes {module!r}, which is the same as {other!r}; which of the two counts is "
                "not known",
            )
        self._check(weight, change)
        self._change[weight] = change
        if (added := change.tensors.get("bias")) is not None:
            bias = self._modern.get(f"{here}.bias")
            if bias is None:
                raise self._wrong(
                    added,
                    f"is added to a bias of {module!r}, which {self.folder} has none of",
                )
            self._bias[bias] = change
            self._check_shape(added, self.shape(bias), bias)

    def _check(self, weight: str, change: Change) -> None:
        """A change's tensors are all there, and fit the weight."""
        there, (a, b) = change.tensors, change.pair
        wanted = {a, b} | ({"lengths"} if self.settings.by_length else set())
        allowed = wanted | (set() if change.of_rows else {"bias"})
        known = {kind: end for end, kind in reversed(FACTORS.items())}
        for kind in sorted(wanted - there.keys()):
            first = next(iter(there.values()))
            raise self._wrong(first, f"has no {change.module}{known[kind]} beside it")
        for kind in sorted(there.keys() - allowed):
            ends = ", ".join(known[kind] for kind in sorted(wanted))
            raise self._wrong(
                there[kind],
                f"has no place beside {ends} (use_dora is {self.settings.by_length} in "
                f"{self.settings.path})",
            )
        shape = self.shape(weight)
        if len(shape) != 2:
            raise self._wrong(
                there[a],
                f"changes {weight!r} of shape {shape}, and an adapter's changes to matrices alone "
                "are served",
            )
        (rows, width), rank = shape, self.settings.rank_of(change.module)
        takes, gives = (rows, width) if change.of_rows else (width, rows)
        self._check_shape(there[a], (rank, takes), weight)
        self._check_shape(there[b], (gives, rank), weight)
        if self.settings.by_length:
            self._check_shape(there["lengths"], (gives,), weight)

    def _check_shape(self, name: str, right: tuple[int, ...], beside: str) -> None:
        if (found := self._adapter.shape(name)) != right:
            raise self._wrong(
                name,
                f"has shape {found}, but {beside!r} {self.shape(beside)} and {self.settings.path} "
                f"ask for {right}",
            )

    @property
    def names(self) -> list[str]:
        return [*self._base.names, *(n for n in self._whole if n not in self._modern.values())]

    @property
    def paths(self) -> list[Path]:
        return [*self._base.paths, *self._adapter.paths]

    def file_of(self, name: str) -> Path:
        whole = self._whole.get(name)
        return self._base.file_of(name) if whole is None else self._adapter.file_of(whole)

    def shape(self, name: str) -> tuple[int, ...]:
        whole = self._whole.get(name)
        return self._base.shape(name) if whole is None else self._adapter.shape(whole)

    def dtype(self, name: str) -> torch.dtype:
        """Of the base's tensor: what it would be saved in."""
        if name in self._modern.values():
            return self._base.dtype(name)
        return self._adapter.dtype(self._whole[name])

    def read(self, name: str) -> Tensor:
        """The tensor; a changed one in float32 at least, which holds the sum of halves better than
        halves."""
        whole = self._whole.get(name)
        tensor = self._base.read(name) if whole is None else self._adapter.read(whole)
        change, bias = self._change.get(name), self._bias.get(name)
        if change is None and bias is None:
            return tensor
        check_dtype_served(self, name, tensor)
        wide = tensor.to(torch.promote_types(tensor.dtype, torch.float32))
        if change is not None:
            return self._changed(wide, change)
        assert bias is not None
        added = self._factor(bias, "bias", wide.dtype)
        return wide.add(added, alpha=self.settings.scaling_of(bias.module))

    def _changed(self, weight: Tensor, change: Change) -> Tensor:
        a, b = (self._factor(change, kind, weight.dtype) for kind in change.pair)
        left, right = (a.T, b.T) if change.of_rows else (b, a)
        scaling = self.settings.scaling_of(change.module)
        changed = torch.addmm(weight, left, right, alpha=scaling)
        if not self.settings.by_length:
            return changed
        # A row of a linear layer, a column of an embedding: what gives one channel of the output.
        lengths = self._factor(change, "lengths", weight.dtype)
        along = 0 if change.of_rows else 1
        return changed * (lengths / changed.norm(dim=along)).unsqueeze(along)

    def _factor(self, change: Change, kind: str, dtype: torch.dtype) -> Tensor:
        name = change.tensors[kind]
        tensor = self._adapter.read(name)
        check_dtype_served(self._adapter, name, tensor)
        check_finite(self._adapter, name, tensor, tensor.dtype)
        return tensor.to(dtype)


def fits(base: WeightFiles, folder: Path) -> bool:
    """Whether an adapter changes any of the tensors that the base's files have."""
    changes, _ = sorted_tensors(WeightFiles(folder, FILES))
    names = modern_names(base.names, base.folder)
    rename = renaming(set(changes), names)
    return any(f"{rename(module)}.weight" in names for module in changes)


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
    state: Mapping[str, Tensor], adapter: Path, folder: Path, dtype: torch.dtype
) -> dict[str, Tensor]:
    """An encoder's parameters with an adapter in them that has their names.

    Args:
        state: by name, on a CPU, float32 or wider.
        adapter: its folder.
        folder: of the base, for messages.
        dtype: of what is given back.

    Raises:
        CheckpointError: as of `AdaptedFiles`; or a tensor of it is none of the encoder's.
    """
    files = AdaptedFiles(_State(state, folder), adapter)
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


def check_bare(files: WeightFiles, folder: Path) -> None:
    """Weights that an adapter may be put on: as they were trained, and without others.

    Raises:
        CheckpointError: they are of eight bits, or have adapters among them.
    """
    if isinstance(files, QuantizedFiles):
        raise CheckpointError(
            f"{folder}: its linear layers are saved in eight bits, which an adapter is not put on; "
            "expected the weights that it was trained beside (quantize= goes with an adapter)"
        )
    if layers := adapted(files.names):
        raise CheckpointError(
            f"{folder}: the weights have adapters of tasks ({layers[0]!r} has one), and are no "
            "base of another adapter; task= chooses among those"
        )
