"""What a checkpoint must hold: these tensors, of these shapes, and beside them heads alone."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator

from ..errors import CheckpointError
from ..models import Encoder
from ..models.families import Family, Parts
from .weights import WeightFiles

BUFFERS = ("embeddings.position_ids", "embeddings.token_type_ids")
"""Constants that old checkpoints carry; computed, so not needed, and kept for saving alone."""

_LAYER = re.compile(r"encoder\.layer\.(\d+)\.")


def count_layers(bare: Collection[str]) -> int:
    """How many layers tensor names (prefix stripped) tell of."""
    return len({match[1] for name in bare if (match := _LAYER.match(name))})


def readings(name: str, family: Family, prefix: str) -> Iterator[str]:
    """A name as it reads without the prefix, and without a part of it.

    Heads stand outside of what `prefix` wraps: `model.bert.encoder...` goes with `model.cls...`.
    """
    for outer in family.prefixes:
        if prefix.startswith(outer) and name.startswith(outer):
            yield name.removeprefix(outer)


def is_buffer(name: str, family: Family, prefix: str) -> bool:
    return any(reading in BUFFERS for reading in readings(name, family, prefix))


def check_names(
    files: WeightFiles,
    names: dict[str, str],
    parts: Parts,
    family: Family,
    prefix: str,
    layers: tuple[int, int],
) -> None:
    """Every tensor that belongs is there, and no other.

    Args:
        files: the weights.
        names: modern name -> name in the file.
        parts: parameter -> modern names.
        family: whose they are.
        prefix: what all names of the encoder begin with.
        layers: the number of layers that `config.json` says, and that the names tell of.

    Raises:
        CheckpointError: names the tensors.
    """
    wanted = {name for ns in parts.values() for name in ns}
    missing = [name for ns in parts.values() for name in ns if name not in names]
    unexpected = [
        stored
        for name, stored in names.items()
        if name not in wanted and not _belongs_aside(name, family, prefix)
    ]
    problems = _listed(files, "missing", missing) + _listed(files, "unexpected", unexpected)
    if not problems:
        return
    said, found = layers
    if said != found:
        problems.append(f"config.json: num_hidden_layers is {said}, the weights have {found}")
    raise CheckpointError(
        f"{files.folder}: the tensors are not those of {family.name} as config.json describes "
        "it:\n  " + "\n  ".join(problems)
    )


def check_shape(files: WeightFiles, name: str, right: tuple[int, ...]) -> None:
    """One tensor is shaped as `config.json` asks."""
    shape = files.shape(name)
    if shape != right:
        raise CheckpointError(
            f"{files.file_of(name)}: tensor {name!r} has shape {shape}, but config.json asks for "
            f"{right}"
        )


def check_shapes(files: WeightFiles, names: dict[str, str], parts: Parts, encoder: Encoder) -> None:
    """Every tensor is shaped as the encoder's parameter that it is a part of."""
    expected = {name: tuple(p.shape) for name, p in encoder.named_parameters()}
    if expected.keys() != parts.keys():
        raise AssertionError(f"family and Encoder disagree: {expected.keys() ^ parts.keys()}")
    for parameter, ns in parts.items():
        rows, *rest = expected[parameter]
        for name in ns:
            check_shape(files, names[name], (rows // len(ns), *rest))


def _belongs_aside(name: str, family: Family, prefix: str) -> bool:
    return any(
        reading in BUFFERS or reading.startswith(family.set_aside)
        for reading in readings(name, family, prefix)
    )


def _listed(files: WeightFiles, what: str, names: Iterable[str], most: int = 5) -> list[str]:
    lines = [f"{files.file_of(n).name}: {what} tensor {n!r}" for n in names]
    more = [f"... and {len(lines) - most} more {what}"] if len(lines) > most else []
    return lines[:most] + more
