"""`DistanceRows`: which row of a table a distance reads."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from pyenc.errors import InputError
from pyenc.ops import DistanceRows
from pyenc.ops.disentangled.rows import reach_of


def written_out(distance: int, rows: DistanceRows) -> int:
    """As the paper's code has it, number by number."""
    bucket, size, middle = distance, abs(distance), rows.buckets // 2
    if rows.buckets and size > middle:
        part = np.log(np.float32(size) / np.float32(middle))
        part = part / np.log(np.float32((rows.max_distance - 1) / middle))
        bucket = int(np.sign(distance) * (np.ceil(part * np.float32(middle - 1)) + middle))
    return int(np.clip(bucket + rows.span, 0, 2 * rows.span - 1)) - rows.first


TABLES = [
    DistanceRows(256, 256, 512), DistanceRows(4, 4, 16), DistanceRows(5, 5, 512),
    DistanceRows(2, 2, 8), DistanceRows(3, 3, 9), DistanceRows(32, 32, 64), DistanceRows(7),
    DistanceRows(512), DistanceRows(1),
]  # fmt: skip


@pytest.mark.parametrize("rows", TABLES, ids=str)
def test_the_row_of_every_distance(rows: DistanceRows) -> None:
    distances = torch.arange(-1100, 1102)
    found = rows.of(distances)
    assert found.tolist() == [written_out(d, rows) for d in distances.tolist()]
    assert found.dtype == torch.int64
    assert torch.equal(rows.of(distances.int().view(3, 1, -1)), found.view(3, 1, -1))


def test_rows_that_were_looked_up() -> None:
    """256 buckets up to 512, as deberta-v3 has: exact to 128, 255 from 511 on."""
    rows = DistanceRows(256, 256, 512)
    known = {0: 256, 1: 257, -1: 255, 128: 384, -128: 128, 129: 385, 511: 511, 600: 511, -511: 1,
             -513: 0}  # fmt: skip
    assert {d: int(rows.of(torch.tensor(d))) for d in known} == known


@pytest.mark.parametrize("rows", TABLES, ids=str)
@pytest.mark.parametrize("reach", [0, 1, 5, 130, 2000])
def test_within_has_the_rows_of_its_distances(rows: DistanceRows, reach: int) -> None:
    part = rows.within(reach)
    distances = torch.arange(-reach, reach + 1)
    assert torch.equal(part.of(distances) + part.first, rows.of(distances))
    assert part.of(distances).unique().tolist() == list(range(part.count))
    part.check_reach("op", reach)
    assert part.within(reach) == part
    if rows.of(torch.tensor(reach + 1)) >= part.end:
        with pytest.raises(InputError, match=f"op: a distance of {reach + 1} reads rows"):
            part.check_reach("op", reach + 1)


def test_how_far_packed_tokens_are_apart() -> None:
    assert reach_of([0], None) == reach_of([0, 0, 0], None) == 0
    assert reach_of([0, 3, 3, 8], None) == 4
    assert reach_of([0, 3, 3, 8], torch.tensor([5, 9, 20, 1, 2, 3, 4, 6])) == 15
    assert reach_of([0, 1], torch.tensor([7])) == 0


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"span": 0}, "span must be at least 1"),
        ({"span": 4.0}, "span must be a whole number, got 4.0"),
        ({"span": True}, "span must be a whole number, got True"),
        ({"span": 4, "buckets": 3, "max_distance": 9}, "buckets must be 0 or span, 4; got 3"),
        ({"span": 4, "buckets": 4}, "max_distance 0 goes with buckets"),
        ({"span": 4, "max_distance": 9}, "max_distance 9 goes with buckets, of which there are 0"),
        ({"span": 4, "buckets": 4, "max_distance": 3}, "more than half of them and one"),
        ({"span": 1, "buckets": 1, "max_distance": 9}, "must be at least 2"),
        ({"span": 4, "first": 3, "last": 3}, r"rows \[3, 3\) must be some of 8"),
        ({"span": 4, "last": 9}, r"rows \[0, 9\) must be some of 8"),
        ({"span": 4, "first": -1}, r"rows \[-1, 8\)"),
    ],
)
def test_numbers_that_make_no_table(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        DistanceRows(**fields)
