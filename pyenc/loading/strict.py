"""What a checkpoint must hold: these tensors, of these shapes, and beside them heads alone."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from ..errors import CheckpointError
from ..models import Encoder, EncoderConfig
from ..models.families import Family, Parts, rows_of
from .constants import Same, constant
from .target import DTYPES
from .weights import WeightFiles

MOST_NUMBERS = 2**50
"""Of a tensor; a petabyte, and far from what torch can count."""


def readings(name: str, family: Family, prefix: str) -> Iterator[str]:
    """A name as it reads without the prefix, and without a part of it.

    Heads stand outside of what `prefix` wraps: `model.bert.encoder...` goes with `model.cls...`.
    """
    for outer in family.prefixes:
        if prefix.startswith(outer) and name.startswith(outer):
            yield name.removeprefix(outer)


def constant_of(name: str, family: Family, prefix: str, config: EncoderConfig) -> Same | None:
    """How to tell whether a tensor holds what is computed; None if it is no constant."""
    found = (constant(reading, config) for reading in readings(name, family, prefix))
    return next(filter(None, found), None)


def is_counter(files: WeightFiles, modern: str, stored: str) -> bool:
    """Is it what torch's AveragedModel counts its steps in, beside the averages?"""
    if modern != "n_averaged":
        return False
    tensor = files.read(stored)
    whole = not (tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool)
    return tensor.ndim == 0 and whole


def check_names(
    files: WeightFiles,
    names: dict[str, str],
    parts: Parts,
    family: Family,
    prefix: str,
    config: EncoderConfig,
    found: int,
) -> None:
    """Every tensor that belongs is there, and no other.

    Args:
        files: the weights.
        names: modern name -> name in the file.
        parts: parameter -> modern names.
        family: whose they are.
        prefix: what all names of the encoder begin with.
        config: the encoder that `config.json` describes.
        found: the number of layers that the names tell of.

    Raises:
        CheckpointError: names the tensors.
    """
    wanted = {name for ns in parts.values() for name in ns}
    missing = [name for ns in parts.values() for name in ns if name not in names]
    unexpected = [
        stored
        for name, stored in names.items()
        if name not in wanted
        and not any(family.is_aside(r) or r in family.same for r in readings(name, family, prefix))
        and constant_of(name, family, prefix, config) is None
        and not is_counter(files, name, stored)
    ]
    problems = _listed(files, "missing", missing) + _listed(files, "unexpected", unexpected)
    if not problems:
        return
    if config.num_layers != found:
        problems.append(
            f"config.json: {family.layers_key} is {config.num_layers}, the weights have {found}"
        )
    raise CheckpointError(
        f"{files.folder}: the tensors are not those of {family.name} as config.json describes "
        "it:\n  " + "\n  ".join(problems)
    )


def check_dtype_served(files: WeightFiles, name: str, tensor: Tensor) -> None:
    """A tensor of the file holds weights as they are."""
    if tensor.dtype not in DTYPES.values():
        raise CheckpointError(
            f"{files.file_of(name)}: tensor {name!r} is {tensor.dtype}, which is not served: "
            f"quantised weights; served: {', '.join(DTYPES)}"
        )


def check_finite(files: WeightFiles, name: str, tensor: Tensor, stored: torch.dtype) -> None:
    """A tensor of the file, in the dtype that it is held in, has no infinity and no NaN."""
    finite = torch.isfinite(tensor)
    if not bool(finite.all()):
        at = tuple((~finite).nonzero()[0].tolist())
        raise CheckpointError(
            f"{files.file_of(name)}: tensor {name!r} has {tensor[at].item()} at {at}"
            + ("" if tensor.dtype == stored else f" (as {tensor.dtype})")
        )


def check_shape(files: WeightFiles, name: str, right: tuple[int, ...]) -> None:
    """One tensor is shaped as `config.json` asks."""
    shape = files.shape(name)
    if shape != right:
        raise CheckpointError(
            f"{files.file_of(name)}: tensor {name!r} has shape {shape}, but config.json asks for "
            f"{right}"
        )


def check_sizes(path: str, config: EncoderConfig) -> None:
    """No parameter of the encoder has more numbers than torch can count.

    Args:
        path: of `config.json`.
        config: the encoder that it describes, whose word embeddings are there as it says.

    Raises:
        CheckpointError: names the sizes.
    """
    heads = config.num_heads + 2 * config.kv_heads
    experts = config.experts.count if config.experts else 1
    channels = {"hidden_size": config.hidden_size}
    for sizes in (
        channels | {"num_heads (keys' and values' too)": heads, "head_size": config.head_dim},
        channels | {"intermediate_size": config.intermediate_size, "experts": experts},
        {"num_heads": config.num_heads, "relative_buckets": config.relative_buckets},
        channels | {"hidden_size again": config.hidden_size},
    ):
        if math.prod(sizes.values()) > MOST_NUMBERS:
            said = " times ".join(f"{name} {size}" for name, size in sizes.items())
            raise CheckpointError(f"{path}: {said} is more than any tensor has numbers")


def check_shapes(files: WeightFiles, names: dict[str, str], parts: Parts, encoder: Encoder) -> None:
    """Every tensor is shaped as the encoder's parameter that it is a part of."""
    expected = {name: tuple(p.shape) for name, p in encoder.named_parameters()}
    if expected.keys() != parts.keys():
        raise AssertionError(f"family and Encoder disagree: {expected.keys() ^ parts.keys()}")
    for parameter, ns in parts.items():
        if not (shape := expected[parameter]):
            check_shape(files, names[ns[0]], ())
            continue
        for name, rows in zip(
            ns, rows_of(encoder.config, parameter, shape[0], len(ns)), strict=True
        ):
            check_shape(files, names[name], (rows, *shape[1:]))


def _listed(files: WeightFiles, what: str, names: Iterable[str], most: int = 5) -> list[str]:
    lines = [f"{files.file_of(n).name}: {what} tensor {n!r}" for n in names]
    more = [f"... and {len(lines) - most} more {what}"] if len(lines) > most else []
    return lines[:most] + more
