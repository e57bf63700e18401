"""How much arithmetic a model's texts are."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from bench.workloads import gflop
from pyenc.models import EncoderConfig
from pyenc.models.experts import Experts

PLAIN = EncoderConfig(
    vocab_size=9, hidden_size=10, num_layers=3, num_heads=2, intermediate_size=7, position="alibi",
    max_length=99,
)  # fmt: skip
LENGTHS = (3, 4)
TOKENS, PAIRS = 7, 25
ATTENTION, UP_AND_DOWN = 4 * 10 * 10, 2 * 10 * 7
"""Weights of a layer."""
MIXED = Experts(count=5, each=2, layers=(False, True, False))


@pytest.mark.parametrize(
    ("change", "weights", "layers"),
    [
        ({}, 3 * (ATTENTION + UP_AND_DOWN), 3),
        ({"gated": True}, 3 * (ATTENTION + 3 * 10 * 7), 3),
        ({"num_kv_heads": 1}, 3 * (ATTENTION - 2 * 10 * 5 + UP_AND_DOWN), 3),
        ({"layer_order": (0, 1, 1, 0)}, 4 * (ATTENTION + UP_AND_DOWN), 4),
        ({"experts": MIXED}, 3 * (ATTENTION + UP_AND_DOWN) + UP_AND_DOWN + 5 * 10, 3),
    ],
    ids=lambda value: next(iter(value), "plain") if isinstance(value, dict) else None,
)
def test_operations(change: dict[str, Any], weights: int, layers: int) -> None:
    expected = 2 * weights * TOKENS + 4 * layers * 10 * PAIRS
    assert gflop(replace(PLAIN, **change), LENGTHS) == pytest.approx(expected / 1e9)
