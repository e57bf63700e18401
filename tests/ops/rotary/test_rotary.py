"""The rotary embedding against its float64 oracle."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from pyenc.errors import InputError
from pyenc.ops import rotary
from tests.ops.elementwise import DTYPES, check


def tables(positions: int, dim: int) -> tuple[Tensor, Tensor]:
    angle = torch.arange(positions)[:, None] * 10000.0 ** -(torch.arange(dim // 2) * 2 / dim)
    return angle.cos(), angle.sin()


@pytest.mark.parametrize("dtype", DTYPES)
def test_rotary(dtype: torch.dtype) -> None:
    cos, sin = tables(50, 16)
    positions = torch.tensor([0, 1, 49, 7, 7])

    def turned(x: Tensor, backend: str | None) -> Tensor:
        return rotary(x, cos, sin, positions, backend=backend)

    check(turned, dtype, [torch.randn(5, 3, 16)])


def test_rotary_keeps_lengths_and_depends_on_differences() -> None:
    cos, sin = tables(64, 8)
    q, k = torch.randn(1, 1, 8), torch.randn(1, 1, 8)

    def score(i: int, j: int) -> float:
        a, b = (rotary(x, cos, sin, torch.tensor([p])) for x, p in ((q, i), (k, j)))
        return float((a * b).sum())

    assert score(3, 10) == pytest.approx(score(40, 47), abs=1e-5)
    torch.testing.assert_close(rotary(q, cos, sin, torch.tensor([9])).norm(), q.norm())


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: rotary(torch.ones(2, 1, 8), *tables(4, 8), torch.tensor([0, 4])),
            "positions run from 0 to 4, the tables from 0 to 3",
        ),
        (lambda: rotary(torch.ones(2, 1, 7), *tables(4, 8), torch.tensor([0, 1])), "D even"),
        (lambda: rotary(torch.ones(2, 1, 6), *tables(4, 8), torch.tensor([0, 1])), r"\(P, 3\)"),
        (lambda: rotary(torch.ones(2, 1, 8), *tables(4, 8), torch.tensor([0.0, 1])), "int32 or"),
    ],
)
def test_bad_input_is_named(call: Callable[[], object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        call()
