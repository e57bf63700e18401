"""Tensor names without what torch puts around modules, and what very old files call a LayerNorm."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from ..errors import CheckpointError

WRAPPERS = (
    "_orig_mod", "module", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_forward_module",
)  # fmt: skip
"""torch.compile, DataParallel and DDP and AveragedModel, FSDP, activation checkpointing, Fabric:
each names what it holds so, in any order and at any depth. No published tensor has one of these
words in its path."""

INNER = "auto_model"
"""sentence-transformers' name of the encoder in its first module, which is called 0."""


BASE = ".parametrizations.weight.original"
FACTORS = (".parametrizations.weight.0.lora_A", ".parametrizations.weight.0.lora_B")
"""A weight that has adapters beside it, and those (`tasks.py`). What other parametrizations make of
an original is not known."""


def adapted(stored: Iterable[str]) -> list[str]:
    """The layers whose weights have adapters beside them."""
    there = set(stored)
    stems = (name.removesuffix(BASE) for name in there if name.endswith(BASE))
    return sorted(s for s in stems if all(s + factor in there for factor in FACTORS))


def modern_names(stored: Iterable[str], folder: Path) -> dict[str, str]:
    """Name as the families know it (a prefix such as `bert.` and all) -> name in the file.

    Raises:
        CheckpointError: two tensors of the file are one under the families' names.
    """
    names: dict[str, str] = {}
    stored = list(stored)
    layers = adapted(stored)
    bases = {layer + BASE: layer + ".weight" for layer in layers}
    beside = {layer + factor for layer in layers for factor in FACTORS}
    for name in stored:
        if name in beside:
            continue
        modern = modern_name(bases.get(name, name))
        if modern in names:
            first, second = sorted((names[modern], name))
            raise CheckpointError(
                f"{folder}: {modern!r} is in the weights twice, as {first!r} and as {second!r}; "
                "which of the two counts is not known"
            )
        names[modern] = name
    return names


def modern_name(name: str) -> str:
    """A tensor's name as the families know it."""
    *path, last = name.split(".")
    path = [part for part in path if part not in WRAPPERS]
    # A first module, by its number: not a layer, whose number comes after other words.
    inner = {i for i, part in enumerate(path) if part == INNER}
    path = [
        part
        for i, part in enumerate(path)
        if i not in inner and not (part == "0" and (i == 0 or i + 1 in inner))
    ]
    name = ".".join([*path, last])
    for old, new in ((".gamma", ".weight"), (".beta", ".bias")):
        if name.endswith("LayerNorm" + old):
            return name.removesuffix(old) + new
    return name
