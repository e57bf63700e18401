"""The seed of what tests draw, which another may stand in for."""

from __future__ import annotations

import os

VARIABLE = "PYENC_TEST_SEED"


def seed(default: int = 20240607) -> int:
    """PYENC_TEST_SEED, else the one that every run has."""
    return int(os.environ.get(VARIABLE) or default)
