"""Disentangled attention through the C++ kernels: sequences of a tile and of several, whose rows of
distances each reads alone, on any number of threads."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from pyenc.ops import DistanceRows, disentangled_attention, extension
from pyenc.ops.disentangled import rows as rows_module
from pyenc.ops.sharing import sharing
from tests.instruction_sets import ISAS, run_on
from tests.ops.disentangled.test_disentangled import Case, bounds, cast, leaves
from tests.oracle import assert_right, naively
from tests.seeds import seed

pytestmark = pytest.mark.skipif(extension.load() is None, reason=extension.why_missing())

BUCKETS = DistanceRows(32, 32, 64)
LONG = {
    "around a tile": Case((127, 128, 129, 1, 130, 16, 17), 2, 24, BUCKETS),
    "several tiles": Case((300, 7, 391), 2, 16, BUCKETS),
    "few rows of many": Case((300, 40), 1, 64, DistanceRows(256, 256, 512).within(299)),
    "distances themselves": Case((200, 40), 1, 8, DistanceRows(150)),
    "holes": Case((150, 9, 129), 2, 16, BUCKETS, holes=True),
    "keys alone": Case((260, 40), 2, 16, BUCKETS, "keys"),
    "queries alone": Case((260, 40), 2, 16, BUCKETS, "queries"),
    "many long ones": Case((140,) * 12, 3, 8, BUCKETS),
}


def check(case: Case, *, gradient: bool = False, dtype: torch.dtype = torch.float32) -> None:
    given = cast(case.operands(), dtype)
    right = case.call(cast(given, torch.float64), backend="reference")
    with naively():
        naive = case.call(given, backend="reference")
    with torch.set_grad_enabled(gradient):
        assert_right(case.call(given, backend="cpu"), naive, right)


@pytest.mark.parametrize("gradient", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", LONG)
def test_against_the_oracle(name: str, dtype: torch.dtype, gradient: bool) -> None:
    """Where a backward follows other kernels serve: of halves those of float32."""
    torch.manual_seed(seed(1))
    check(LONG[name], gradient=gradient, dtype=dtype)


@pytest.mark.parametrize("isa", ISAS)
def test_each_instruction_set(isa: str) -> None:
    run_on(isa, __file__)


@pytest.mark.parametrize("name", ["around a tile", "several tiles", "holes", "many long ones"])
def test_the_bits_of_a_sequence_are_its_own(name: str, threads: list[int]) -> None:
    """Whatever stands beside it, and on any number of threads."""
    torch.manual_seed(seed(2))
    case = LONG[name]
    given = [x if x is None else x.detach() for x in cast(case.operands(), torch.float32)]
    whole = case.call(given, backend="cpu")
    for count in threads:
        torch.set_num_threads(count)
        assert torch.equal(case.call(given, backend="cpu"), whole)
    if case.holes:
        return
    for first, last in itertools.pairwise(bounds(*case.lengths).tolist()):
        alone = replace(case, lengths=(last - first,))
        mine = [None if x is None else x[first:last] for x in given[:3]]
        assert torch.equal(alone.call([*mine, *given[3:]], backend="cpu"), whole[first:last])


@pytest.fixture
def threads() -> object:
    before = torch.get_num_threads()
    yield [1, 2, 3]
    torch.set_num_threads(before)


def test_rows_that_are_not_there_are_not_read() -> None:
    """A sequence reads the rows of its own distances: others may be anything."""
    torch.manual_seed(seed(3))
    rows = DistanceRows(256, 256, 512)
    case = Case((20, 130), 2, 16, rows)
    given = [x if x is None else x.detach() for x in cast(case.operands(), torch.float32)]
    right = case.call(given, backend="cpu")
    for at in (3, 4):
        table = given[at]
        assert isinstance(table, Tensor)
        table[: rows.span - 129] = table[rows.span + 130 :] = torch.nan
    assert torch.equal(case.call(given, backend="cpu"), right)


def test_rows_of_distances_are_made_once_a_forward(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []
    own = rows_module._of_distance

    def noting(rows: DistanceRows, reach: int) -> Tensor:
        made.append(reach)
        return own(rows, reach)

    monkeypatch.setattr(rows_module, "_of_distance", noting)
    cases = [Case((9, 4), 2, 8, rows) for rows in (DistanceRows(4, 4, 16), DistanceRows(8))]
    cases.append(Case((100, 4), 2, 8, DistanceRows(8)))
    given = [cast(case.operands(), torch.float32) for case in cases]
    with sharing():
        for case, operands in zip(cases, given, strict=True):
            first, second = (case.call(operands, backend="cpu") for _ in range(2))
            assert torch.equal(first, second)
    assert made == [8, 8]  # all beyond the table are as those at its ends
    for case, operands in zip(cases, given, strict=True):
        torch.testing.assert_close(
            case.call(operands, backend="cpu"), case.call(operands, backend="torch")
        )


def test_positions_far_apart() -> None:
    """A line of rows by distance has an end, however far positions go."""
    torch.manual_seed(seed(4))
    rows = DistanceRows(16, 16, 64)
    at = torch.tensor([0, 1, 2, 127, 128, 129, 130, 5_000, 5_001, 16_000_000])
    q, k, v = torch.randn(3, len(at), 2, 8, dtype=torch.float64)
    tables = torch.randn(2, 32, 2, 8, dtype=torch.float64)

    def out(dtype: torch.dtype, backend: str) -> Tensor:
        operands = (x.to(dtype) for x in (q, k, v))
        return disentangled_attention(
            *operands, bounds(len(at)), position_keys=tables[0].to(dtype),
            position_queries=tables[1].to(dtype), rows=rows, positions=at, backend=backend,
        )  # fmt: skip

    with naively():
        naive = out(torch.float32, "reference")
    assert_right(out(torch.float32, "cpu"), naive, out(torch.float64, "reference"))


def main() -> None:
    torch.manual_seed(seed(1))
    for name in ("around a tile", "several tiles", "holes"):
        check(LONG[name])
        check(LONG[name], dtype=torch.bfloat16)
    for case in (LONG["around a tile"], LONG["holes"]):
        given = cast(case.operands(), torch.float32)
        grads = [
            torch.autograd.grad(case.call(given, backend=backend).square().sum(), leaves(given))
            for backend in ("cpu", "torch")
        ]
        for one, other in zip(*grads, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
    print(extension.isa())


if __name__ == "__main__":
    main()
