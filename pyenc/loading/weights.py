"""Weight files: which there are, and their tensors one by one, without running what is in them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..errors import CheckpointError
from .files import check_fetched
from .pickles import pickled_names, read_pickle

INDEXED = ("model.safetensors", "pytorch_model.bin")
"""Published names, the preferred first; each may be cut into shards by `<name>.index.json`."""


class WeightFiles:
    """All tensors of a checkpoint folder by name; read when asked for, each from its file.

    Args:
        folder: holds `model.safetensors` or `pytorch_model.bin`, or the shards of one of them.
        published: other names than these, the preferred first.

    Raises:
        CheckpointError: no weights, a damaged or unsafe file; the message names it.
    """

    def __init__(self, folder: Path, published: Sequence[str] = INDEXED) -> None:
        self.folder = folder
        self._file_of: dict[str, Path] = {}
        self._safe: dict[Path, Any] = {}
        self._pickled: dict[Path, dict[str, Tensor]] = {}
        paths, index = _weight_paths(folder, published)
        for path in paths:
            check_fetched(path)
            for name in self._open(path):
                if name in self._file_of:
                    raise CheckpointError(
                        f"{path}: tensor {name!r} stands in {self._file_of[name].name} too"
                    )
                self._file_of[name] = path
        if index is not None:
            _check_index(index, self._file_of)

    @property
    def names(self) -> list[str]:
        return list(self._file_of)

    @property
    def paths(self) -> list[Path]:
        return sorted(set(self._file_of.values()))

    def file_of(self, name: str) -> Path:
        """The file that holds a tensor, or would have: the first one, for a missing name."""
        return self._file_of.get(name) or next(iter(self._file_of.values()), self.folder)

    def read(self, name: str) -> Tensor:
        """The tensor as stored; it may share memory with the file, so copy what is kept."""
        path = self._file_of[name]
        if path in self._pickled:
            return self._pickled[path][name]
        with _naming(path):
            tensor: Tensor = self._safe[path].get_tensor(name)
        return tensor

    def dtype(self, name: str) -> torch.dtype:
        """Of the tensor as stored."""
        return self.read(name).dtype

    def shape(self, name: str) -> tuple[int, ...]:
        path = self._file_of[name]
        if path in self._pickled:
            return tuple(self._pickled[path][name].shape)
        with _naming(path):
            return tuple(self._safe[path].get_slice(name).get_shape())

    def _open(self, path: Path) -> list[str]:
        if path.suffix == ".safetensors":
            with _naming(path):
                self._safe[path] = safe_open(path, framework="pt")
                return list(self._safe[path].keys())
        self._pickled[path] = read_pickle(path)
        return list(self._pickled[path])


def has_weights(folder: Path) -> bool:
    """Whether there are weights of a whole model in a folder, readable or not."""
    files = (folder / f"{name}{end}" for name in INDEXED for end in ("", ".index.json"))
    return any(file.is_file() for file in files)


def tensor_names(folder: Path) -> list[str]:
    """The names of a folder's tensors, with as little of its weights read as can be.

    Raises:
        CheckpointError: as of `WeightFiles`.
    """
    paths, _ = _weight_paths(folder)
    for path in paths:
        check_fetched(path)
    if any(path.suffix == ".safetensors" for path in paths):
        return WeightFiles(folder).names
    return [name for path in paths for name in pickled_names(path)]


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Turn what safetensors says of a bad file into an error that names the file."""
    try:
        yield
    except (SafetensorError, OSError, ValueError, RuntimeError, MemoryError) as error:
        raise CheckpointError(f"{path}: not a readable safetensors file: {error}") from error


def _weight_paths(
    folder: Path, published: Sequence[str] = INDEXED
) -> tuple[list[Path], Path | None]:
    """The files that hold weights, and the index that names them where there is one."""
    for name in published:
        if (folder / name).is_file():
            return [folder / name], None
        index = folder / f"{name}.index.json"
        if index.is_file():
            return _shards(index), index
    raise CheckpointError(
        f"{folder}: no weights: expected {' or '.join(published)} (or their .index.json)"
    )


def _weight_map(index: Path) -> dict[str, str]:
    """Which tensor is in which shard, by the index."""
    try:
        shards = json.loads(index.read_text("utf-8"))["weight_map"].items()
        return {name: str(shard) for name, shard in shards}
    except (ValueError, KeyError, AttributeError, TypeError, OSError, RecursionError) as error:
        raise CheckpointError(f"{index}: no readable weight_map: {error!r}") from error


def _check_index(index: Path, there: dict[str, Path]) -> None:
    """What the index names is in some shard: a head or a pooler that is not would be taken for one
    that the checkpoint never had."""
    said = _weight_map(index)
    if lost := [name for name in said if name not in there]:
        others = f", and {len(lost) - 1:,} more" if len(lost) > 1 else ""
        raise CheckpointError(
            f"{index}: tensor {lost[0]!r:.200} should be in {said[lost[0]]}{others}; no shard has "
            "it: a shard or the index is of another checkpoint, or was written in part"
        )


def _shards(index: Path) -> list[Path]:
    names = sorted(set(_weight_map(index).values()))
    if not names:
        raise CheckpointError(f"{index}: its weight_map is empty; expected a shard of each tensor")
    paths = [index.parent / name for name in names]
    for name, path in zip(names, paths, strict=True):
        # A shard's name comes from a file of a stranger: it may not lead out of the folder.
        if path.parent != index.parent:
            raise CheckpointError(f"{index}: shard {name!r:.80} must be a plain file name")
        try:
            there = path.is_file()
        except OSError as error:  # a name that no file can have
            shown = path.name[:40] + "..." * (len(path.name) > 40)
            raise CheckpointError(f"{index}: shard {shown!r}: {error.strerror}") from error
        if not there:
            raise CheckpointError(f"{index}: shard {path.name} is missing")
    return paths
