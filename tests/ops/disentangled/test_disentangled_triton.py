"""Disentangled attention's Triton kernel without its interpreter and without a card: when it is
chosen, the line of rows, and that nothing of a call is read on the host."""

from __future__ import annotations

from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

pytest.importorskip("triton")

from pyenc.ops import DistanceRows
from pyenc.ops.backend import choose
from pyenc.ops.disentangled import backend_table, triton
from pyenc_kernels.disentangled import MARGIN, launch
from tests.ops.attention.capture_watch import Watch

CUDA = torch.device("cuda", 0)
DEBERTA = DistanceRows(256, 256, 512)


@pytest.mark.parametrize(
    "rows",
    [
        DEBERTA, DEBERTA.within(30), DistanceRows(512), DistanceRows(1), DistanceRows(2, 2, 9),
        DistanceRows(3, 3, 4), DistanceRows(5, 5, 300), DistanceRows(7, 7, 6),
        DistanceRows(32, 32, 1000), DistanceRows(33, 33, 1000),
    ],
    ids=str,
)  # fmt: skip
def test_from_there_on_rows_are_the_same(rows: DistanceRows) -> None:
    reach = triton.same_from(rows)
    line = rows.of(torch.arange(-reach - 70000, reach + 70001))
    middle = len(line) // 2
    assert (line[middle + reach :] == line[-1]).all()
    assert (line[: middle - reach + 1] == line[0]).all()
    assert (line[0], line[-1]) == tuple(rows.of(torch.tensor([-(2**60), 2**60])))
    changes = (line.diff() != 0).nonzero()[[0, -1], 0] - middle
    least = int(changes.abs().max()) + 1
    whole = DistanceRows(rows.span, rows.buckets, rows.max_distance)
    assert rows != whole or reach <= least * (1 + 2.0**-9) + 3


@pytest.mark.parametrize("rows", [DEBERTA, DistanceRows(9), DEBERTA.within(50)], ids=str)
def test_the_line_has_every_distance(rows: DistanceRows) -> None:
    line = triton.line_of(rows, 700, torch.device("cpu"))
    assert line.dtype == torch.int32
    assert line.tolist() == [int(rows.of(torch.tensor(d))) for d in range(-700, 701)]


class Launched:
    """Stands for the kernel."""

    def __init__(self) -> None:
        self.calls: list[tuple[tuple[Tensor, ...], tuple[Any, ...]]] = []

    def of(self, *_: Any) -> Any:
        return lambda grid, tensors, numbers: self.calls.append((tensors, numbers))


@pytest.mark.parametrize("rows", [DEBERTA.within(299), DistanceRows(16)], ids=str)
@pytest.mark.parametrize("positions", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_nothing_of_a_call_meets_the_host(
    dtype: torch.dtype, positions: bool, rows: DistanceRows, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that a CUDA graph may capture it."""
    launched = Launched()
    monkeypatch.setattr(launch, "_FORWARD", launched)
    monkeypatch.setattr(launch, "HELD", 300 * rows.count * 2)
    monkeypatch.setattr(triton, "on_card_of", lambda x: mock.MagicMock())
    with FakeTensorMode():
        q, k, v = (torch.empty(300, 4, 64, dtype=dtype, device=CUDA) for _ in range(3))
        table = torch.empty(rows.count, 4, 64, dtype=dtype, device=CUDA)
        cu_seqlens = torch.empty(3, dtype=torch.int32, device=CUDA)
        at = torch.empty(300, dtype=torch.int64, device=CUDA) if positions else None
        with Watch() as watch:
            out = triton.forward(q, k, v, table, table, cu_seqlens, at, rows, 0.1)
    assert watch.calls
    assert not watch.found
    assert (out.shape, out.dtype, out.device) == (q.shape, dtype, CUDA)
    assert len(launched.calls) == 2
    reach = triton.same_from(rows) if positions else min(299, triton.same_from(rows))
    for tensors, numbers in launched.calls:
        assert all(x.device == CUDA for x in tensors)
        aligned = -(-rows.count // 8) * 8
        assert [x.shape for x in tensors[4:6]] == [(2, 300, aligned)] * 2
        assert all(x.dtype == dtype for x in tensors[:6])
        assert tensors[6].shape == (2 * (reach + MARGIN) + 1,)
        assert numbers[-3:-1] == (reach + MARGIN, reach)


def test_on_a_card_it_is_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton.triton_launch, "missing", lambda kind: None)
    with FakeTensorMode():
        q = torch.empty(9, 2, 64, device=CUDA)
        at = torch.empty(9, dtype=torch.int64, device=CUDA)
        wild = DistanceRows(5, 5, 2**13)
        for given, right in (
            ((q, 0.0, DEBERTA, None), "triton"),
            ((q, 0.0, DEBERTA, at), "triton"),
            ((q,), "triton"),
            ((q, 0.1, DEBERTA, None), "torch"),
            ((q, 0.0, wild, None), "triton"),
            ((q, 0.0, wild, at), "torch"),
            ((q.double(), 0.0, DEBERTA, None), "torch"),
        ):
            assert choose("op", None, backend_table(*given)) == right  # type: ignore[arg-type]
