"""ALiBi slopes and T5 buckets, against published numbers."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from pyenc.errors import InputError
from pyenc.ops import RelativePositionBias, alibi_slopes, relative_position_bucket


@pytest.mark.parametrize(
    ("heads", "exponents"),
    [
        (1, [8]),
        (2, [4, 8]),
        (6, [2, 4, 6, 8, 1, 3]),
        (8, [1, 2, 3, 4, 5, 6, 7, 8]),
        (12, [1, 2, 3, 4, 5, 6, 7, 8, 0.5, 1.5, 2.5, 3.5]),
        (16, [i / 2 for i in range(1, 17)]),
    ],
)
def test_published_slopes(heads: int, exponents: list[float]) -> None:
    expected = torch.tensor([2.0**-e for e in exponents])
    torch.testing.assert_close(alibi_slopes(heads), expected, rtol=1e-7, atol=0)


def test_no_heads() -> None:
    with pytest.raises(InputError, match="at least 1"):
        alibi_slopes(0)


def test_t5_buckets() -> None:
    """The table of T5's published arithmetic for 32 buckets and distance 128."""
    starts = {0: 0, 1: 1, 2: 2, 3: 3, 4: 4, 5: 5, 6: 6, 7: 7, 8: 8, 12: 9, 16: 10, 23: 11, 32: 12}
    starts |= {46: 13, 64: 14, 91: 15}
    expected, bucket = [], 0
    for distance in range(300):
        bucket = starts.get(distance, bucket)
        expected.append(bucket)
    distance = torch.arange(300)
    assert relative_position_bucket(-distance, 32, 128).tolist() == expected
    ahead = relative_position_bucket(distance, 32, 128).tolist()
    assert ahead == [0] + [b + 16 for b in expected[1:]]


@pytest.mark.parametrize("shape", [(32,), (3, 4), (0, 4), (6, 2)])
def test_bad_tables(shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match="num_buckets"):
        RelativePositionBias(torch.zeros(shape))


def test_distance_below_the_exact_buckets() -> None:
    with pytest.raises(InputError, match="max_distance 8"):
        RelativePositionBias(torch.zeros(32, 2), max_distance=8)


@pytest.mark.parametrize("distance", [128.0, "128", True, None, float("inf"), 2**63])
def test_a_distance_is_a_whole_number(distance: Any) -> None:
    with pytest.raises(InputError, match="max_distance must be a whole number of 64 bits, got"):
        RelativePositionBias(torch.zeros(32, 2), max_distance=distance)
