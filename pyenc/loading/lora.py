"""A LoRA adapter of peft, put on the weights of its base as they are read.

`AdaptedFiles` has the base's names, and is read as the files would be that peft's
`merge_and_unload()` and `save_pretrained()` write: a head that is tied to an adapted embedding goes
with it, which of peft's layers themselves it does not.
"""

from __future__ import annotations

from collections.abc import Iterator
from os import PathLike
from pathlib import Path

import torch
from torch import Tensor

from ..errors import CheckpointError, InputError, InputTypeError
from ..models.families import FAMILIES
from .heads import same
from .lora_names import BESIDE, FACTORS, Change, LoraAdapter, Matched, matched
from .lora_settings import ends, read_settings
from .low_rank import added
from .quantized import QuantizedFiles
from .strict import check_dtype_served, check_finite
from .weights import WeightFiles
from .wrappers import adapted

FILES = ("adapter_model.safetensors", "adapter_model.bin")


class AdaptedFiles(WeightFiles):
    """The base's weight files with an adapter's changes in them.

    Args:
        matched: the adapter beside the weights that it is put on.
        least: what sums are made in, where the weights are not wider (`dtype_of_sums`).

    Raises:
        CheckpointError: the adapter is damaged, asks for what is not served, or does not belong to
            the base; the message names the key or tensor.
    """

    def __init__(self, matched: Matched, least: torch.dtype) -> None:
        self._least = least
        self._base = base = matched.base
        self._adapter = adapter = matched.adapter
        self.folder = base.folder
        self.settings = adapter.settings
        self._modern = matched.names
        self._stored = frozenset(base.names)
        rename = matched.rename
        self._whole: dict[str, str] = {}
        """Stored name, or a new one -> the adapter's tensor in its place."""
        for name, stored in adapter.whole.items():
            module, dot, last = name.rpartition(".")
            modern = f"{rename(module)}{dot}{last}"
            here = self._modern.get(modern, modern)
            if here in self._whole:
                raise adapter.both(self._whole[here], stored, here)
            self._whole[here] = stored
        self._change: dict[str, Change] = {}
        """Stored name of a weight -> what is done to it."""
        self._bias: dict[str, Change] = {}
        for module, change in adapter.changes.items():
            self._place(rename(module), change)
        self._check_listed({rename(name.rpartition(".")[0]) for name in adapter.whole})
        self._same = dict(self._copies())
        """Stored name -> the changed embedding that it is a copy of: a tied head, which goes with
        it as it does in the merged model."""

    def _copies(self) -> Iterator[tuple[str, str]]:
        rows = [name for name, change in self._change.items() if change.of_rows]
        for name in rows:
            shape, dtype = self._base.shape(name), self._base.dtype(name)
            for other in self._base.names:
                if (
                    other in self._change
                    or other in self._whole
                    or self._base.shape(other) != shape
                ):
                    continue
                if self._base.dtype(other) == dtype and same(
                    self._base.read(other), self._base.read(name)
                ):
                    yield other, name

    def _check_listed(self, whole: set[str]) -> None:
        """What the settings list has tensors, if the base has such modules: a file that lacks some
        was cut short, or is of other settings."""
        heads = tuple({prefix for family in FAMILIES for prefix in family.set_aside})
        modules = {name.rpartition(".")[0] for name in self._modern}
        # A prefix of the encoder's may stand before a head's name too.
        own = {m for m in modules if not any(f".{head}" in f".{m}." for head in heads)}
        changed = {change.module for change in self._change.values()}
        told, listed = self.settings.targets, tuple[str, ...]()
        if isinstance(told, tuple) and not self.settings.some_alone:
            listed = told
        for key, said, found in (
            ("target_modules", listed, changed),
            ("modules_to_save", self.settings.whole, whole),
        ):
            for end in said:
                if any(ends(m, end) for m in own) and not any(ends(m, end) for m in found):
                    raise CheckpointError(
                        f"{self._adapter.files.file_of('')}: no tensors of {end!r}, which {key} of "
                        f"{self.settings.path} lists and {self.folder} has; the file was written "
                        "in part, or is of another adapter"
                    )

    def _place(self, here: str, change: Change) -> None:
        """Note what a change is made to, by its module's path in the base."""
        module, first = change.module, change.first
        weight = self._modern.get(f"{here}.weight")
        if weight is None:
            raise self._adapter.wrong(
                first,
                f"changes {module!r}, which {self.folder} has no weight of: the adapter is of "
                "another model, or of a head that is not in these weights",
            )
        if (key := self.settings.leaves_out(module)) is not None:
            how = "is among" if key == "exclude_modules" else "is not among"
            raise self._adapter.wrong(
                first,
                f"changes {module!r}, which {how} {key} of {self.settings.path}; which of the two "
                "counts is not known",
            )
        if weight in self._change:
            raise self._adapter.both(self._change[weight].first, first, weight)
        saved = self._whole.get(weight)
        if saved is not None and BESIDE not in saved:
            raise self._adapter.wrong(
                first,
                f"changes {module!r}, whose weight {saved!r} would stand in the place of; expected "
                "one of the two",
            )
        self._check(weight, change)
        self._change[weight] = change
        if (added := change.tensors.get("bias")) is not None:
            bias = self._modern.get(f"{here}.bias")
            if bias is None:
                raise self._adapter.wrong(
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
            lacking = f"{change.module}{known[kind]}"
            raise self._adapter.wrong(change.first, f"has no {lacking} beside it")
        for kind in sorted(there.keys() - allowed):
            ends = ", ".join(known[kind] for kind in sorted(wanted))
            raise self._adapter.wrong(
                there[kind],
                f"has no place beside {ends} (use_dora is {self.settings.by_length} in "
                f"{self.settings.path})",
            )
        shape = self.shape(weight)
        if len(shape) != 2:
            raise self._adapter.wrong(
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
        if (found := self._adapter.files.shape(name)) != right:
            raise self._adapter.wrong(
                name,
                f"has shape {found}, but {beside!r} {self.shape(beside)} and {self.settings.path} "
                f"ask for {right}",
            )

    @property
    def names(self) -> list[str]:
        return [*self._base.names, *(n for n in self._whole if n not in self._stored)]

    @property
    def paths(self) -> list[Path]:
        return [*self._base.paths, *self._adapter.files.paths]

    def file_of(self, name: str) -> Path:
        whole = self._whole.get(name)
        return self._base.file_of(name) if whole is None else self._adapter.files.file_of(whole)

    def shape(self, name: str) -> tuple[int, ...]:
        whole = self._whole.get(name)
        return self._base.shape(name) if whole is None else self._adapter.files.shape(whole)

    def dtype(self, name: str) -> torch.dtype:
        """Of the base's tensor: what it would be saved in."""
        if name in self._stored:
            return self._base.dtype(name)
        return self._adapter.files.dtype(self._whole[name])

    def read(self, name: str) -> Tensor:
        """The tensor; a changed one as wide as the sum."""
        name = self._same.get(name, name)
        whole = self._whole.get(name)
        tensor = self._base.read(name) if whole is None else self._adapter.files.read(whole)
        change, bias = self._change.get(name), self._bias.get(name)
        if change is None and bias is None:
            return tensor
        check_dtype_served(self, name, tensor)
        check_finite(self, name, tensor, tensor.dtype)
        wide = tensor.to(torch.promote_types(tensor.dtype, self._least))
        if change is not None:
            wide = self._changed(wide, change)
        if bias is not None:
            factor = self._factor(bias, "bias", wide.dtype)
            wide = wide.add(factor, alpha=self.settings.scaling_of(bias.module))
        if not bool(torch.isfinite(wide).all()):
            by = change or bias
            assert by is not None
            raise self._adapter.wrong(
                by.first,
                f"makes infinities or NaN of {name!r} in {self.file_of(name)}",
            )
        return wide

    def _changed(self, weight: Tensor, change: Change) -> Tensor:
        a, b = (self._factor(change, kind, weight.dtype) for kind in change.pair)
        left, right = (a.T, b.T) if change.of_rows else (b, a)
        scaling = self.settings.scaling_of(change.module)
        changed = added(weight, left, right, scaling)
        if not self.settings.by_length:
            return changed
        # A row of a linear layer, a column of an embedding: what gives one channel of the output.
        lengths = self._factor(change, "lengths", weight.dtype)
        along = 0 if change.of_rows else 1
        return changed * (lengths / changed.norm(dim=along)).unsqueeze(along)

    def _factor(self, change: Change, kind: str, dtype: torch.dtype) -> Tensor:
        name = change.tensors[kind]
        tensor = self._adapter.files.read(name)
        check_dtype_served(self._adapter.files, name, tensor)
        check_finite(self._adapter.files, name, tensor, tensor.dtype)
        return tensor.to(dtype)


def with_adapter(
    files: WeightFiles, folder: Path, least: torch.dtype
) -> tuple[WeightFiles, LoraAdapter | None]:
    """Weights with the adapter of a folder in them; or as they are, and the adapter, where it
    changes none of them: it has the names of an encoder's parameters.

    Args:
        files: the weights.
        folder: of the adapter.
        least: as of `AdaptedFiles`.

    Raises:
        CheckpointError: as of `AdaptedFiles`, or the weights are no base of an adapter.
    """
    _check_bare(files)
    beside = matched(LoraAdapter(read_settings(folder), WeightFiles(folder, FILES)), files)
    return (AdaptedFiles(beside, least), None) if beside.fits else (files, beside.adapter)


def _check_bare(files: WeightFiles) -> None:
    """Weights that an adapter may be put on: as they were trained, and without others.

    Raises:
        CheckpointError: they are of eight bits, or have adapters among them.
    """
    if isinstance(files, QuantizedFiles):
        raise CheckpointError(
            f"{files.folder}: its linear layers are saved in eight bits, which an adapter is not "
            "put on; expected the weights that it was trained beside (quantize= goes with an "
            "adapter)"
        )
    if layers := adapted(files.names):
        raise CheckpointError(
            f"{files.folder}: the weights have adapters of tasks ({layers[0]!r} has one), and are "
            "no base of another adapter; task= chooses among those"
        )


def check_adapter(adapter: object) -> None:
    """An argument that names an adapter.

    Raises:
        InputTypeError: it is neither a string nor a path.
        InputError: it is empty.
    """
    if not isinstance(adapter, str | PathLike | None):
        raise InputTypeError(
            f"adapter must be a folder, a Hub name or None, got {type(adapter).__name__}"
        )
    if adapter == "":
        raise InputError("adapter must be a folder, a Hub name or None, got an empty string")
