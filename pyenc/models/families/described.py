"""The encoder that a `config.json` describes, the tensors that it asks for, and what lacks few."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from dataclasses import replace

from ...errors import CheckpointError, InputError
from ..config import EncoderConfig
from .config_file import ConfigFile
from .family import Family
from .parts import Names, Parts

LACKING = 4
"""A checkpoint is nearly a family's where it lacks less than one in so many of its tensors."""


def count_layers(bare: Collection[str], family: Family) -> int:
    """How many layers tensor names (prefix stripped) tell of."""
    return len({match[1] for name in bare if (match := re.match(family.layer, name))})


def described(family: Family, config: ConfigFile, bare: Names) -> tuple[EncoderConfig, Parts]:
    """The encoder, and which tensors (prefix stripped) stand in each parameter.

    Raises:
        CheckpointError: `config.json` asks for what is not served.
        InputError: its numbers make no encoder.
    """
    shape = some = family.shape(config, bare)
    layers = count_layers(bare, family)
    # One layer too many is enough to be refused, and config.json may speak of a million.
    if shape.num_layers > layers:
        some = replace(shape, num_layers=layers + 1, layer_order=())
    return shape, family.parts(some, bare)


def nearly(
    families: Iterable[Family], names: Collection[str], config: ConfigFile
) -> tuple[Family, str] | None:
    """The family whose tensors these are but for a few that are missing, and the prefix they carry.

    A signature is of few tensors, and one of them may be what is missing.

    Args:
        families: to choose among.
        names: tensor names of a checkpoint that `recognise` knows no family of.
        config: its `config.json`, which has the last word as there.

    Returns:
        None where more than a few are missing of every family that `config.json` may mean.
    """
    best = None
    least = 1 / LACKING
    said = config.values.get("model_type")
    for family in families:
        if said not in (*family.model_types, None) or not family.accepts(config):
            continue
        for prefix in family.prefixes:
            bare = frozenset(n.removeprefix(prefix) for n in names if n.startswith(prefix))
            try:
                _, parts = described(family, config, bare)
            except (CheckpointError, InputError):
                continue
            wanted = {name for tensors in parts.values() for name in tensors}
            share = len(wanted - bare) / len(wanted)
            if 0 < share < least:
                best, least = (family, prefix), share
    return best
