"""Folders under pyenc's own `model_type`: what a model that transformers saved for us says.

Four families call themselves "bert", and transformers makes a random BertModel of three of them. So
what is saved from inside of transformers (`pyenc.register`) has a type that nothing else knows: who
does not know it refuses, and the published `config.json` stands whole inside of the new one.

sentence-transformers keeps a model's limit as its tokenizer's, and cuts that to the
`max_position_embeddings` beside it when it loads. Where positions have no table that number is no
limit (ALiBi starts at it, rotary positions were trained to it), so it is not written.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import CheckpointError
from .files import read_json

POSITIONS = "max_position_embeddings"
"""The key that caps a tokenizer's limit."""

OWN_TYPE = "pyenc"
PUBLISHED = "published"
"""The key that holds the published `config.json`."""


def read_config(folder: Path) -> dict[str, Any]:
    """The published `config.json` of a folder, also where it stands inside of our own.

    Raises:
        CheckpointError: it is missing, damaged, or of our own type without a published one.
    """
    path = folder / "config.json"
    return published(read_json(path), str(path))


def leaves_limit(config: Mapping[str, Any]) -> bool:
    """Whether a `config.json` leaves it to the files beside it how long a text may be.

    Older folders of our own type do not, and keep the limit that they state.
    """
    return config.get("model_type") == OWN_TYPE and POSITIONS not in config


def published(config: Mapping[str, Any], path: str = "config.json") -> dict[str, Any]:
    """What a `config.json` says in the family's own words.

    Args:
        config: the whole of it.
        path: of the file, for messages.

    Raises:
        CheckpointError: it is of our own type and holds no published one.
    """
    if config.get("model_type") != OWN_TYPE:
        return dict(config)
    inner = config.get(PUBLISHED)
    if not isinstance(inner, Mapping) or inner.get("model_type") == OWN_TYPE:
        raise CheckpointError(
            f"{path}: model_type {OWN_TYPE!r} needs the published config.json under "
            f"{PUBLISHED!r}, an object; got {inner!r:.80}"
        )
    return dict(inner)
