"""Arguments from their words, as `type` of argparse's arguments."""

from __future__ import annotations

import argparse
import math

from .parser import shown

OF_LINEAR = ("bf16x6", "bf16x3", "amx", "few_rows", "onednn")
"""`pyenc.ops.backend.OF_LINEAR`, repeated here since importing it would import torch."""

MOST_DIGITS = 18
"""Of a whole number: more would be no number of tokens, nor fit into 64 bits."""


def _whole(word: str) -> int:
    """0 for what is no whole number."""
    return int(word) if word.isdecimal() and len(word.lstrip("0")) <= MOST_DIGITS else 0


def positive(word: str) -> int:
    if _whole(word) < 1:
        raise argparse.ArgumentTypeError(
            f"expected a whole number from 1, of {MOST_DIGITS} digits at most, got {shown(word)}"
        )
    return _whole(word)


def backend(word: str) -> str:
    if word in OF_LINEAR:
        raise argparse.ArgumentTypeError(
            f"{word} is a choice of linear layers, which other ops have not; the environment "
            f"variable PYENC_LINEAR={word} asks for it"
        )
    return word


def tolerance(word: str) -> float:
    try:
        value = float(word)
    except ValueError:
        value = math.nan
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"expected a number from 0, got {shown(word)}")
    return value


def shard(word: str) -> tuple[int, int]:
    i, slash, n = word.partition("/")
    if not (slash and 1 <= _whole(i) <= _whole(n)):
        raise argparse.ArgumentTypeError(f"expected I/N with 1 <= I <= N, got {shown(word)}")
    return _whole(i), _whole(n)
