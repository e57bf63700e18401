"""Long runs are those that a regular expression finds, wherever they stand."""

from __future__ import annotations

import random
import re

import pytest

from pyenc.text.long_runs import LongRuns
from tests.seeds import seed


def naively(text: str, classes: list[str], least: int) -> list[tuple[int, int]]:
    found = re.finditer("|".join(rf"[{c}]{{{least},}}" for c in classes), text)
    return [match.span() for match in found]


@pytest.mark.parametrize("least", [1, 2, 3, 5, 8])
def test_as_a_regular_expression(least: int) -> None:
    draw = random.Random(seed())
    classes = ["a-cé", " \t", "0-9"]
    runs = LongRuns(classes, least)
    for _ in range(400):
        text = "".join(
            draw.choice(["a", "b", "é", " ", "\t", "7", "?", "\U0001f600"])
            * draw.choice([1, 1, 2, 5, 9])
            for _ in range(draw.randrange(12))
        )
        assert list(runs(text)) == naively(text, classes, least), repr(text)


def test_at_the_ends_and_side_by_side() -> None:
    runs = LongRuns(["a", "b"], 4)
    assert list(runs("")) == []
    assert list(runs("aaa")) == []
    assert list(runs("aaaa")) == [(0, 4)]
    assert list(runs("aaaabbbb")) == [(0, 4), (4, 8)]
    assert list(runs("aaabbbbaaa")) == [(3, 7)]
    assert list(runs("xaaaaaaaaaax")) == [(1, 11)]
