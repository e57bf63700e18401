"""Strict loading: every tensor that belongs is there, is shaped right, is finite; no other is."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import CheckpointError, InputError
from ..models import Encoder
from ..models.families import ConfigFile, Family, recognise
from .weights import WeightFiles

BUFFERS = ("embeddings.position_ids", "embeddings.token_type_ids")
"""Constants that old checkpoints carry; computed, so neither needed nor kept on saving."""

DTYPES = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "float64": torch.float64,
}


@dataclass
class Checkpoint:
    """An encoder and what must be known to write it back as it came."""

    encoder: Encoder
    family: Family
    config: dict[str, Any]
    """`config.json` as it stands in the folder."""
    sources: dict[str, tuple[str, ...]]
    """Parameter -> the names its rows had in the file, prefix and all."""
    set_aside: dict[str, Tensor] = field(default_factory=dict)
    """Heads that are no part of the encoder, under their names in the file."""
    tied: dict[str, str] = field(default_factory=dict)
    """Head tensors equal to a parameter: written from it."""
    stored_dtype: torch.dtype = torch.float32


def load_checkpoint(
    folder: Path,
    *,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    backend: str | None = None,
    skip_eps: float | None = None,
) -> Checkpoint:
    """Read a checkpoint folder into an `Encoder`, in eval mode.

    Args:
        folder: holds `config.json` and the weights under their published names.
        device: where to put it; default CUDA where there is one, else the CPU.
        dtype: a torch dtype or its name; "auto" keeps the stored one; default float32, to which
            weights stored in half are cast up.
        backend, skip_eps: handed to `Encoder`.

    Raises:
        CheckpointError: a file or tensor is missing, damaged, unsafe, misshapen or not finite.
        UnknownArchitectureError: the tensors belong to no known family.
    """
    config_path = folder / "config.json"
    config = read_json(config_path)
    files = WeightFiles(folder)
    names = {_modern(name): name for name in files.names}
    if len(names) != len(files.names):
        raise CheckpointError(f"{folder}: LayerNorms named both gamma/beta and weight/bias")
    reader = ConfigFile(str(config_path), config)
    family, prefix = recognise(names, reader)
    bare = frozenset(n.removeprefix(prefix) for n in names)
    try:
        shape = family.config(reader, bare)
    except InputError as error:
        raise CheckpointError(f"{config_path}: {error}") from error
    with torch.device("meta"):
        encoder = Encoder(shape, backend=backend, skip_eps=skip_eps)
    parts = {p: tuple(prefix + n for n in ns) for p, ns in family.parts(shape).items()}
    _check_names(files, names, parts, family, prefix)
    _check_shapes(files, names, parts, encoder)
    stored = _stored_dtype(files, names, parts)
    target_device, target_dtype = _target(device, dtype, stored)
    state = {
        parameter: _read(files, [names[n] for n in ns], target_device, target_dtype)
        for parameter, ns in parts.items()
    }
    encoder.load_state_dict(state, strict=True, assign=True)
    encoder.eval()
    checkpoint = Checkpoint(
        encoder=encoder,
        family=family,
        config=config,
        sources={p: tuple(names[n] for n in ns) for p, ns in parts.items()},
        stored_dtype=stored,
    )
    _set_aside(checkpoint, files, names, prefix)
    return checkpoint


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file, or an error that names it."""
    try:
        content = json.loads(path.read_text("utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: missing") from error
    except (ValueError, OSError, RecursionError) as error:
        raise CheckpointError(f"{path}: not readable JSON: {error}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: expected a JSON object, got {type(content).__name__}")
    return content


def _modern(name: str) -> str:
    """Very old files call the LayerNorm's tensors gamma and beta."""
    for old, new in ((".gamma", ".weight"), (".beta", ".bias")):
        if name.endswith("LayerNorm" + old):
            return name.removesuffix(old) + new
    return name


def _belongs_aside(name: str, family: Family, prefix: str) -> bool:
    bare = name.removeprefix(prefix)
    return bare in BUFFERS or any(
        candidate.startswith(head) for candidate in (name, bare) for head in family.set_aside
    )


def _check_names(
    files: WeightFiles,
    names: dict[str, str],
    parts: dict[str, tuple[str, ...]],
    family: Family,
    prefix: str,
) -> None:
    wanted = {name for ns in parts.values() for name in ns}
    missing = [n for ns in parts.values() for n in ns if n not in names]
    unexpected = [n for n in names if n not in wanted and not _belongs_aside(n, family, prefix)]
    problems = _listed(files, "missing", missing) + _listed(
        files, "unexpected", (names[n] for n in unexpected)
    )
    if problems:
        raise CheckpointError(
            f"{files.folder}: the tensors are not those of {family.name} as config.json "
            "describes it:\n  " + "\n  ".join(problems)
        )


def _listed(files: WeightFiles, what: str, names: Iterable[str], most: int = 5) -> list[str]:
    lines = [f"{files.file_of(n).name}: {what} tensor {n!r}" for n in names]
    more = [f"... and {len(lines) - most} more {what}"] if len(lines) > most else []
    return lines[:most] + more


def _check_shapes(
    files: WeightFiles, names: dict[str, str], parts: dict[str, tuple[str, ...]], encoder: Encoder
) -> None:
    expected = {name: tuple(p.shape) for name, p in encoder.named_parameters()}
    if expected.keys() != parts.keys():
        raise AssertionError(f"family and Encoder disagree: {expected.keys() ^ parts.keys()}")
    for parameter, ns in parts.items():
        rows, *rest = expected[parameter]
        for n in ns:
            shape = files.shape(names[n])
            right = (rows // len(ns), *rest)
            if shape != right:
                raise CheckpointError(
                    f"{files.file_of(names[n])}: tensor {names[n]!r} has shape {shape}, but "
                    f"config.json asks for {right}"
                )


def _stored_dtype(
    files: WeightFiles, names: dict[str, str], parts: dict[str, tuple[str, ...]]
) -> torch.dtype:
    return files.read(names[parts["embeddings.word.weight"][0]]).dtype


def check_device(device: str | torch.device | None) -> torch.device:
    """A device that works: CUDA where there is one, else the CPU, or the one asked for.

    Raises:
        InputError: it does not exist, or this torch cannot use it.
    """
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        # torch has an exception type for each way to fail, and some only when it is used.
        return torch.empty(1, device=device).device
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(f"device {str(device)!r} is not available: {reason}") from error


def _target(
    device: str | torch.device | None, dtype: str | torch.dtype | None, stored: torch.dtype
) -> tuple[torch.device, torch.dtype]:
    place = check_device(device)
    if dtype == "auto":
        return place, stored
    if dtype is None:
        return place, torch.float32
    if isinstance(dtype, str):
        if dtype not in DTYPES:
            raise InputError(f"dtype {dtype!r} is unknown; known: auto, {', '.join(DTYPES)}")
        dtype = DTYPES[dtype]
    if dtype not in DTYPES.values():
        raise InputError(f"dtype {dtype} is not served; known: {', '.join(DTYPES)}")
    return place, dtype


def _read(files: WeightFiles, names: list[str], device: torch.device, dtype: torch.dtype) -> Tensor:
    """One parameter from its parts, in memory of its own, checked to be finite."""
    pieces = []
    for name in names:
        tensor = files.read(name)
        if not tensor.is_floating_point():
            raise CheckpointError(
                f"{files.file_of(name)}: tensor {name!r} is {tensor.dtype}, not floating point"
            )
        tensor = tensor.to(dtype)
        finite = torch.isfinite(tensor)
        if not bool(finite.all()):
            at = tuple((~finite).nonzero()[0].tolist())
            raise CheckpointError(
                f"{files.file_of(name)}: tensor {name!r} has {tensor[at].item()} at {at}"
                + ("" if dtype == files.read(name).dtype else f" (as {dtype})")
            )
        pieces.append(tensor)
    # torch.cat copies even one piece: a mapped file may change or vanish under us.
    return torch.cat(pieces).to(device)


def _set_aside(
    checkpoint: Checkpoint, files: WeightFiles, names: dict[str, str], prefix: str
) -> None:
    """Keep heads for saving, and note which of them are one with a parameter."""
    used = {n for ns in checkpoint.sources.values() for n in ns}
    family = checkpoint.family
    for modern, name in names.items():
        if name in used or modern.removeprefix(prefix) in BUFFERS:
            continue
        tensor = files.read(name)
        parameter = family.tied.get(modern.removeprefix(prefix))
        source = checkpoint.sources.get(parameter, ("",))[0] if parameter else ""
        if parameter and source and torch.equal(tensor, files.read(source)):
            checkpoint.tied[name] = parameter
        else:
            checkpoint.set_aside[name] = tensor.clone()
