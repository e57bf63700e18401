"""Texts with known neighbours, and who embeds them: what the tests of all embedders share."""

from __future__ import annotations

from pathlib import Path

import numpy as np

import pyenc

GOLDEN = Path(__file__).resolve().parents[1] / "golden"

PROMPTED = GOLDEN / "xlmr_e5_like_h2"
"""A checkpoint with one prompt for queries and another for documents, which it calls passages."""

DOCUMENTS = {
    "tides": "The moon pulls at the sea, and twice a day the water rises and falls.",
    "bread": "Flour, water, salt and yeast are kneaded, left to rise and baked.",
    "chess": "A bishop moves along the diagonals, a rook along ranks and files.",
    "bees": "Worker bees gather nectar from flowers and store it as honey.",
    "iron": "Ore is melted in a furnace with coke, and the molten metal is drawn off below.",
}
QUERIES = {
    "why does the water level at the beach change?": "tides",
    "how is a loaf of bread made?": "bread",
    "which squares can a bishop reach?": "chess",
    "where does honey come from?": "bees",
    "how do you smelt iron?": "iron",
}


def expected(encoder: pyenc.TextEncoder, prompt: str, texts: list[str]) -> np.ndarray:
    """By `encode` with the prompt written out."""
    vectors: np.ndarray = encoder.encode(texts, prompt=prompt, progress=False)
    return vectors
