"""What the tests of adapters as checkpoints share."""

from __future__ import annotations

import warnings
from typing import Any

import pyenc

TEXTS = ["The quick brown fox", "jumps over the lazy dog, twice", "x"]


def quietly(*args: Any, **options: Any) -> pyenc.TextEncoder:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", pyenc.AssumptionWarning)
        return pyenc.load(*args, device="cpu", **options)
