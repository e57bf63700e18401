"""The families, and which of them a checkpoint belongs to: its tensor names decide."""

from __future__ import annotations

import copyreg
from collections.abc import Collection

from ...errors import UnknownArchitectureError
from . import bert, distilbert, gte, jina, jina_qk, modernbert, mosaic, mpnet, nomic, roberta, t5
from .family import ConfigFile, Family, HeadNames, Names, Parts
from .heads import head_parts, with_head

FAMILIES: tuple[Family, ...] = (
    mosaic.FAMILY,
    jina_qk.FAMILY,
    jina.FAMILY,
    jina.FAMILY_ORIGINAL,
    gte.FAMILY,
    modernbert.FAMILY,
    nomic.FAMILY,
    mpnet.FAMILY,
    t5.FAMILY,
    distilbert.FAMILY,
    roberta.FAMILY,
    bert.FAMILY,
)

__all__ = [
    "FAMILIES",
    "ConfigFile",
    "Family",
    "HeadNames",
    "Names",
    "Parts",
    "by_name",
    "head_parts",
    "recognise",
    "with_head",
]


def by_name(name: str) -> Family:
    """The family of that name."""
    return next(family for family in FAMILIES if family.name == name)


# Pickled by name: a family is code, and the reader has the same code.
copyreg.pickle(Family, lambda family: (by_name, (family.name,)))


def recognise(names: Collection[str], config: ConfigFile) -> tuple[Family, str]:
    """The family of these tensor names and the prefix they carry.

    Names decide, since four families call themselves "bert"; `config.json` is the cross-check.

    Raises:
        UnknownArchitectureError: no family has these names, or the config contradicts them.
    """
    present = set(names)
    for family in FAMILIES:
        for prefix in family.prefixes:
            if all(prefix + name in present for name in family.signature):
                if not family.accepts(config):
                    continue
                why = f"the tensor names are {family.name}'s, whose arithmetic that type is not"
                allowed = (*family.model_types, None)
                config.require("model_type", allowed, None, why)
                return family, prefix
    some = ", ".join(sorted(present)[:3]) or "none"
    raise UnknownArchitectureError(
        f"{config.path}: unknown architecture: model_type {config.values.get('model_type')!r}, "
        f"tensors such as {some}. Known: " + "; ".join(f.checkpoints for f in FAMILIES)
    )
