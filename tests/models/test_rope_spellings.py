"""How files say that rotary positions are scaled, or not, and what says it in two ways."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from pyenc.errors import CheckpointError
from pyenc.models.rotary import Rotary
from tests.models.refused_configs import EURO, GEMMA, GTE, JINA3, MODERN, NOMIC
from tests.models.test_families import shape_of


def test_gte_scaling() -> None:
    assert shape_of("GTE v1.5", GTE).rotary == Rotary(500_000.0, factor=2.0)
    plain = shape_of("GTE v1.5", GTE, rope_scaling=None)
    assert plain.rotary == Rotary(500_000.0)
    native = {"rope_scaling": ..., "rope_theta": ..., "model_type": "gte"}
    assert shape_of("GTE v1.5", GTE, **native).rotary == Rotary(160_000.0)
    native["rope_parameters"] = {"rope_theta": 500_000, "rope_type": "default"}
    assert shape_of("GTE v1.5", GTE, **native) == plain
    native |= {"rope_scaling": native.pop("rope_parameters")}
    assert shape_of("GTE v1.5", GTE, **native) == plain
    ntk = {"type": "ntk", "factor": 2.0, "rope_theta": 9.0}
    assert shape_of("GTE v1.5", GTE, rope_scaling=ntk).rotary == Rotary(9.0, factor=2.0)
    assert shape_of("GTE v1.5", GTE, head_dim=16, rope_scaling=None) == replace(plain, head_size=16)
    scaled = shape_of("GTE v1.5", GTE, logn_attention_scale=True, logn_attention_clip1=True)
    assert (scaled.log_length, scaled.log_length_at_least_one) == (64, True)


@pytest.mark.parametrize(
    ("family", "golden"),
    [
        ("ModernBERT", MODERN), ("Gemma", GEMMA), ("jina-embeddings-v3", JINA3),
        ("nomic-bert", NOMIC), ("EuroBERT", EURO), ("GTE v1.5", GTE),
    ],
)  # fmt: skip
def test_no_scaling_of_positions(family: str, golden: str) -> None:
    """However a file says that there is none."""
    unsaid: dict[str, Any] = {"rope_parameters": ...}
    if family == "EuroBERT":  # whose base has no default
        unsaid |= {"rope_theta": 250000.0}
    plain = shape_of(family, golden, rope_scaling=None, **unsaid)
    for none in ({}, {"rope_type": "default"}, {"type": "default"}, ...):
        assert shape_of(family, golden, rope_scaling=none, **unsaid) == plain


DEFAULT: dict[str, Any] = {"rope_theta": 9.0, "rope_type": "default"}


LINEAR: dict[str, Any] = {"full_attention": {"rope_type": "linear", "factor": 2.0}}


@pytest.mark.parametrize("none", [{"rope_type": "default"}, {"type": "default"}], ids=str)
@pytest.mark.parametrize(
    ("family", "golden", "parameters"),
    [
        ("ModernBERT", MODERN, LINEAR), ("Gemma", GEMMA, LINEAR),
        ("jina-embeddings-v3", JINA3, DEFAULT), ("nomic-bert", NOMIC, DEFAULT),
        ("nomic-bert", NOMIC, {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 9.0}),
    ],
)  # fmt: skip
def test_no_scaling_beside_parameters(
    family: str, golden: str, parameters: dict[str, Any], none: dict[str, Any]
) -> None:
    """Which transformers then passes over, or in part."""
    said: dict[str, Any] = {"rope_parameters": parameters, "rotary_emb_base": ...}
    shape_of(family, golden, **said, rope_scaling={})
    with pytest.raises(CheckpointError, match=r"rope_scaling is .*default.*, two spellings of one"):
        shape_of(family, golden, **said, rope_scaling=none)
