"""The families, and which of them a checkpoint belongs to: its tensor names decide."""

from __future__ import annotations

import copyreg
from collections.abc import Collection
from difflib import SequenceMatcher

from ...errors import UnknownArchitectureError
from . import (
    albert,
    bert,
    deberta,
    distilbert,
    dpr,
    electra,
    ernie,
    eurobert,
    gemma,
    gte,
    jina,
    jina_qk,
    jina_v3,
    longformer,
    mistral,
    modernbert,
    mosaic,
    mpnet,
    neobert,
    nomic,
    own,
    qwen,
    roberta,
    t5,
)
from .config_file import ConfigFile
from .family import Family, HeadNames
from .heads import head_parts, with_head
from .parts import Names, Parts, in_file_order, in_own_order, rows_of

FAMILIES: tuple[Family, ...] = (
    mosaic.FAMILY,
    longformer.FAMILY,
    jina_qk.FAMILY,
    jina.FAMILY,
    jina.FAMILY_ORIGINAL,
    gte.FAMILY,
    modernbert.FAMILY,
    neobert.FAMILY,
    gemma.FAMILY,
    gemma.FAMILY_2,
    gemma.FAMILY_1,
    eurobert.FAMILY,
    qwen.FAMILY,
    qwen.FAMILY_2,
    mistral.FAMILY,
    mistral.FAMILY_LLAMA,
    nomic.FAMILY,
    jina_v3.FAMILY,
    mpnet.FAMILY,
    albert.FAMILY,
    t5.FAMILY,
    distilbert.FAMILY,
    roberta.FAMILY,
    electra.FAMILY,
    ernie.FAMILY,
    dpr.FAMILY,
    deberta.FAMILY,
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
    "in_file_order",
    "in_own_order",
    "recognise",
    "rows_of",
    "with_head",
]


def by_name(name: str) -> Family:
    """The family of that name."""
    return next(family for family in (*FAMILIES, own.FAMILY) if family.name == name)


# Pickled by name: a family is code, and the reader has the same code.
copyreg.pickle(Family, lambda family: (by_name, (family.name,)))


def recognise(names: Collection[str], config: ConfigFile) -> tuple[Family, str]:
    """The family of these tensor names and the prefix they carry.

    Names decide, since four families call themselves "bert"; `config.json` is the cross-check. Only
    pyenc's own format says what it is: its names are of whatever encoder it holds.

    Raises:
        UnknownArchitectureError: no family has these names, or the config contradicts them.
    """
    present = set(names)
    if own.FAMILY.accepts(config):
        return own.FAMILY, ""
    for family in FAMILIES:
        for prefix in family.prefixes:
            marks = filter(None, (family.signature, family.other_signature))
            if any(all(prefix + name in present for name in mark) for mark in marks):
                if not family.accepts(config):
                    continue
                why = f"the tensor names are {family.name}'s, whose arithmetic that type is not"
                allowed = (*family.model_types, None)
                config.require("model_type", allowed, None, why)
                return family, prefix
    some = ", ".join(sorted(present)[:3]) or "none"
    near = "; ".join(family.known for family in nearest(present, config))
    raise UnknownArchitectureError(
        f"{config.path}: unknown architecture: model_type {config.values.get('model_type')!r}, "
        f"tensors such as {some}. Nearest of what is known: {near}. All: pyenc models"
    )


def nearest(names: Collection[str], config: ConfigFile, count: int = 3) -> list[Family]:
    """The families that tensor names and `model_type` are most like, the nearest first."""
    words = {word for name in names for word in name.split(".") if not word.isdigit()}
    said = str(config.values.get("model_type", ""))

    def likeness(family: Family) -> float:
        own = {w for name in family.signature for w in name.split(".") if not w.isdigit()}
        kinds = (*family.model_types, family.name.lower())
        alike = max(SequenceMatcher(None, said.lower(), kind).ratio() for kind in kinds)
        return alike + len(own & words) / len(own)

    # sorted keeps the order of FAMILIES among equals, so that the answer is the same every time.
    return sorted(FAMILIES, key=likeness, reverse=True)[:count]
