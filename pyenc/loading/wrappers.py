"""Tensor names without what torch puts around modules, and what very old files call a LayerNorm."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from ..errors import CheckpointError

WRAPPERS = ("_orig_mod", "module", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
"""torch.compile, DataParallel and DDP, FSDP, activation checkpointing: each names what it holds so,
in any order and at any depth. No published tensor has one of these words in its path."""


def modern_names(stored: Iterable[str], folder: Path) -> dict[str, str]:
    """Name as the families know it (a prefix such as `bert.` and all) -> name in the file.

    Raises:
        CheckpointError: two tensors of the file are one under the families' names.
    """
    names: dict[str, str] = {}
    for name in stored:
        modern = _modern(name)
        if modern in names:
            first, second = sorted((names[modern], name))
            raise CheckpointError(
                f"{folder}: {modern!r} is in the weights twice, as {first!r} and as {second!r}; "
                "which of the two counts is not known"
            )
        names[modern] = name
    return names


def _modern(name: str) -> str:
    *path, last = name.split(".")
    name = ".".join([*(part for part in path if part not in WRAPPERS), last])
    for old, new in ((".gamma", ".weight"), (".beta", ".bias")):
        if name.endswith("LayerNorm" + old):
            return name.removesuffix(old) + new
    return name
