"""Torch pickles: read without running what is in them, and without growing beyond the file."""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import CheckpointError

MOST_SHARED = 16
"""Times that the bytes of a file may be taken, by tensors that are one with another."""


ADVICE = ("Weights only load failed", "Please file an issue", "Check the documentation", "(")
"""How lines of torch's errors begin that say how such a file is run."""

PICKLE = b"\x80"
"""The first byte of every pickle of torch's that is no zip archive."""

WRAPPED = ("state_dict", "model_state_dict", "model", "module")
"""What training loops call the tensors, beside numbers such as the epoch."""


def read_pickle(path: Path) -> dict[str, Tensor]:
    """A torch pickle with weights_only=True: dense tensors by name, nothing else.

    They may stand in a dict of their own, one of `WRAPPED`, with nothing but numbers beside it.

    Raises:
        CheckpointError: it is damaged, holds more, or claims more than it stores.
    """
    content = _tensors(path, "cpu")
    for name, tensor in content.items():
        if tensor.layout != torch.strided:
            raise CheckpointError(f"{path}: tensor {name!r} is {tensor.layout}, not dense")
        if tensor.is_nested:
            raise CheckpointError(f"{path}: tensor {name!r} is a nested tensor, not dense")
        if tensor.is_meta:
            raise CheckpointError(f"{path}: tensor {name!r} is on 'meta', it has no values")
        if tensor.is_quantized:
            raise CheckpointError(
                f"{path}: tensor {name!r} is {tensor.dtype}, which is not served: quantised weights"
            )
    # Parameters are accepted, and their gradients are not wanted.
    tensors = {name: tensor.detach() for name, tensor in content.items()}
    _refuse_overlaps(path, tensors)
    return tensors


def pickled_names(path: Path) -> list[str]:
    """The names in a torch pickle. Of one in torch's present format no weights are read.

    Raises:
        CheckpointError: it is damaged or holds more.
    """
    return list(_tensors(path, "meta"))


def _tensors(path: Path, device: str) -> dict[str, Tensor]:
    """What a pickle holds by name, on the CPU or without values, on "meta"."""
    _refuse_bombs(path)
    try:
        mapped = device == "meta" and zipfile.is_zipfile(path)
        content = torch.load(path, map_location=device, weights_only=True, mmap=mapped)
    except pickle.UnpicklingError as error:
        if not zipfile.is_zipfile(path) and (head := _head(path))[:1] != PICKLE:
            raise CheckpointError(
                f"{path}: not a torch file, it begins with {head!r}; expected what torch.save "
                "writes"
            ) from error
        raise CheckpointError(
            f"{path}: refused, it holds more than tensors (a pickle can run code; none was run): "
            f"{_found(str(error))}"
        ) from error
    except Exception as error:
        # torch raises a dozen types on damaged files, RuntimeError, EOFError, KeyError among them.
        first = (str(error) or repr(error)).splitlines()[0]
        raise CheckpointError(f"{path}: not a readable torch file: {first}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: expected a dict of tensors, got {type(content).__name__}")
    content = _unwrapped(path, content)
    for name, tensor in content.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor):
            raise CheckpointError(
                f"{path}: {name!r} is a {type(tensor).__name__}, expected tensors by name only"
            )
    return content


def _head(path: Path) -> bytes:
    """What a file begins with."""
    with path.open("rb") as file:
        return file.read(24)


def _found(message: str) -> str:
    """What torch's error says that it has found, without its advice to run it after all."""
    _, _, after = message.rpartition("WeightsUnpickler error:")
    said = [line.strip() for line in (after or message).splitlines()]
    said = [line for line in said if line and not line.startswith(ADVICE)]
    return said[0].partition(" Please use ")[0] if said else "no reason is given"


def _unwrapped(path: Path, content: dict[Any, Any]) -> dict[Any, Any]:
    """The tensors of a training loop's file; numbers beside them say nothing about the model."""
    outer = next((key for key in WRAPPED if isinstance(content.get(key), dict)), None)
    if outer is None:
        return content
    for key, value in content.items():
        if key != outer and not isinstance(value, (int, float)):
            raise CheckpointError(
                f"{path}: {key!r} is a {type(value).__name__}, expected only numbers beside "
                f"{outer!r}"
            )
    inner: dict[Any, Any] = content[outer]
    return inner


def _refuse_overlaps(path: Path, tensors: dict[str, Tensor]) -> None:
    """Strides of 0, and views of one storage, make gigabytes of a few bytes.

    Tensors that are one, as a decoder with the embeddings, are allowed: they count once.
    """
    views: set[tuple[object, ...]] = set()
    left: dict[int, int] = {}
    claimed = 0
    for name, tensor in tensors.items():
        storage, size = tensor.untyped_storage(), _size(tensor)
        if size > storage.nbytes():
            raise CheckpointError(
                f"{path}: tensor {name!r} claims shape {tuple(tensor.shape)}, more than is stored"
            )
        claimed += size
        view = (storage.data_ptr(), tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype)
        if view in views:
            continue
        views.add(view)
        left[storage.data_ptr()] = left.get(storage.data_ptr(), storage.nbytes()) - size
        if left[storage.data_ptr()] < 0:
            raise CheckpointError(
                f"{path}: tensor {name!r} overlaps others in memory: together they claim more than "
                "is stored"
            )
    stored = _stored(tensors.values())
    if claimed > MOST_SHARED * stored:
        raise CheckpointError(
            f"{path}: its tensors claim {claimed:,} bytes, {stored:,} are stored: too many are one"
        )


def _size(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _stored(tensors: Iterable[Tensor]) -> int:
    storages = (tensor.untyped_storage() for tensor in tensors)
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


def _refuse_bombs(path: Path) -> None:
    """torch.save stores entries as they are; a compressed or overlong one is not torch's."""
    if not zipfile.is_zipfile(path):
        return
    size = path.stat().st_size
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError) as error:
        raise CheckpointError(f"{path}: damaged zip archive: {error}") from error
    for entry in entries:
        if entry.compress_type != zipfile.ZIP_STORED:
            raise CheckpointError(
                f"{path}: refused, entry {entry.filename!r} is compressed, which torch never does"
            )
    total = sum(entry.file_size for entry in entries)
    if total > size:
        raise CheckpointError(
            f"{path}: refused, its entries claim {total:,} bytes, the file has {size:,}"
        )
