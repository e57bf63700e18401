"""The C++ of disentangled attention: what it would read or write astray is refused in Python."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from pyenc.errors import InputError
from pyenc.ops import DistanceRows, extension
from pyenc.ops.disentangled import cpu
from pyenc.ops.disentangled.terms import Terms

pytestmark = pytest.mark.skipif(
    not extension.required() and extension.load() is None, reason=extension.why_missing()
)

X = torch.ones(4, 2, 3)
TABLE = torch.ones(8, 2, 3)
TERMS = Terms(TABLE, TABLE, DistanceRows(4, 4, 16), torch.tensor([0, 1, 4]), [0, 1, 4], None, 0.5)


@pytest.mark.parametrize(
    ("name", "bad"),
    [
        ("position_keys", TABLE[:7]),
        ("position_queries", TABLE[:, :1]),
        ("position_keys", TABLE.double()),
        ("position_queries", TABLE.to("meta")),
    ],
)
def test_tables(name: str, bad: Tensor) -> None:
    cpu.forward(X, X, X, TERMS, False)
    with pytest.raises(InputError, match=name):
        cpu.forward(X, X, X, replace(TERMS, **{name: bad}), False)
    _, *kept = cpu.forward(X, X, X, TERMS, True)
    with pytest.raises(InputError, match=name):
        cpu.backward(X, X, X, X, replace(TERMS, **{name: bad}), tuple(kept))


@pytest.mark.parametrize("at", range(3))
def test_operands(at: int) -> None:
    for bad in (X[:3], X[..., :2]):
        given = [X, X, X]
        given[at] = bad
        with pytest.raises(InputError):
            cpu.forward(*given, TERMS, False)


@pytest.mark.parametrize(("name", "at"), [("out", 0), ("shift", 1), ("total", 2)])
def test_what_was_kept(name: str, at: int) -> None:
    _, *kept = cpu.forward(X, X, X, TERMS, True)
    for bad in (kept[at][:3], kept[at].double()):
        with pytest.raises(InputError, match=name):
            cpu.backward(X, X, X, X, TERMS, (*kept[:at], bad, *kept[at + 1 :]))
    for bad in (X[:3], X.double()):
        with pytest.raises(InputError, match="grad_out"):
            cpu.backward(bad, X, X, X, TERMS, tuple(kept))
