"""Attributes that are compared whatever `==` makes of them."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest

from pyenc.loading.alike import alike


class Plain:
    """Without an `==` of its own: equal to itself alone."""

    def method(self) -> None: ...

    def other(self) -> None: ...


class Vague:
    """Whose `==` cannot be had."""

    def __eq__(self, other: object) -> bool:
        raise RuntimeError

    __hash__ = None  # type: ignore[assignment]


class Unsure:
    """Whose `==` is no truth."""

    def __eq__(self, other: object) -> Any:
        return np.array([True, True])

    __hash__ = None  # type: ignore[assignment]


NAN = float("nan")
ONE, TWO = np.array([1.0, NAN]), np.array([1.0, 2.0])
WORDS = np.array(["a"], dtype=object)


@pytest.mark.parametrize("rebuilt", [True, False])
@pytest.mark.parametrize(
    ("ours", "right", "wanted"),
    [
        (1.5, float("1.5"), True), (1, 2, False), ("a", "a", True), (None, None, True),
        (None, 0, False), (TWO[:1], 1.0, False), (1.0, TWO[:1], False),
        (NAN, float("nan"), True), (NAN, 1.0, False), (1.0, NAN, False),
        (ONE, ONE.copy(), True), (ONE, TWO, False), (TWO, TWO[:1], False),
        (TWO, TWO.astype(np.float32), False), (TWO, [1.0, 2.0], False), ([1.0, 2.0], TWO, False),
        (ONE.astype(complex), ONE.astype(complex), True), (WORDS, WORDS.copy(), True),
        (np.array([1, 2]), np.array([1, 2]), True), (np.array(["a"]), np.array(["b"]), False),
        ([1, [ONE]], [1, [ONE.copy()]], True), ([1, [ONE]], [1, [TWO]], False),
        ([1], [1, 2], False), ([1, 2], [1], False), ([], [], True), ([1, 2], [3, 2], False),
        ((1, ONE), (1, ONE.copy()), True), ((1, 2), [1, 2], False),
        ({"a": ONE}, {"a": ONE.copy()}, True), ({"a": ONE}, {"a": TWO}, False),
        ({"a": 1}, {"b": 1}, False), ({"a": 1}, {"a": 1, "b": 2}, False), ({}, {}, True),
        ({"a": 1, "b": 2}, {"b": 2, "a": 1}, True), ({"a": 1}, [("a", 1)], False),
        (Plain(), 1, False), (Vague(), 1, False), (Unsure(), 1, False),
        (Plain().method, Plain().other, False),
    ],
)  # fmt: skip
def test_values(ours: Any, right: Any, wanted: bool, rebuilt: bool) -> None:
    assert alike(ours, right, rebuilt) is wanted


@pytest.mark.parametrize(
    ("ours", "right"),
    [
        (Plain(), Plain()), (Vague(), Vague()), (Unsure(), Unsure()),
        (Plain().method, Plain().method), (lambda: 1, lambda: 2), (partial(max), partial(max)),
        ([Plain()], [Plain()]), ({"a": Vague()}, {"a": Vague()}),
    ],
)  # fmt: skip
def test_what_is_made_again(ours: Any, right: Any) -> None:
    """Functions and objects that cannot be compared: of one type, where their fields make them."""
    assert alike(ours, right, rebuilt=True) is True
    assert alike(ours, right, rebuilt=False) is False
    assert alike(ours, ours, rebuilt=False) is True
