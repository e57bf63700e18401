"""What launching costs: loops of calls, what cannot be captured, and how both are shown."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import Any
from unittest import mock

import pytest
import torch

from bench import op
from bench.measure import launching
from bench.show import op_table

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize(("seconds", "calls"), [(0.2, launching.LEAST), (0.0, launching.MOST)])
def test_a_loop_is_as_long_as_its_calls_allow(
    seconds: float, calls: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0
    made = 0

    def run() -> None:
        nonlocal now, made
        now += seconds
        made += 1

    monkeypatch.setattr(time, "perf_counter", lambda: now)
    assert launching.back_to_back(run, CPU) == pytest.approx(seconds)
    assert made == 1 + calls


def test_on_a_cpu_nothing_is_added() -> None:
    assert op._launched(lambda: None, CPU) == {}


def test_what_no_graph_takes_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    def captured(run: Any, device: torch.device) -> Any:
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(launching, "captured", captured)
    monkeypatch.setattr(launching, "back_to_back", lambda run, device: 2e-3)
    found = op._launched(lambda: None, CUDA)
    assert found["wall"] == 2e-3
    assert "capturing" in found["not captured"]
    assert "replay" not in found


def test_what_fails_in_a_capture_leaves_torch_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else what is timed next would run on the capture's stream."""
    ended: list[str] = []

    @contextlib.contextmanager
    def capturing(graph: Any, stream: Any) -> Iterator[None]:
        try:
            yield
        finally:
            ended.append("capture")

    for name in ("Stream", "current_stream", "stream", "CUDAGraph"):
        monkeypatch.setattr(torch.cuda, name, mock.MagicMock())
    monkeypatch.setattr(launching, "capturing", capturing)
    runs = iter([None, None])
    with pytest.raises(StopIteration):
        launching.captured(lambda: next(runs), CUDA)
    assert ended == ["capture"]


def test_columns_stand_where_there_are_figures() -> None:
    row = {
        "median": 1e-3, "spread": 0.1, "seconds": [1e-3], "ratio": 1.0, "distance": 1e-7,
        "allowed": 1e-6, "right": True,
    }  # fmt: skip
    case = {"name": "a case", "dtype": "float32", "gflop": 0.0, "gigabytes": 0.0}
    rates: Any = {"copy_gbs": None}
    plain = op_table.case_lines({**case, "peers": {"ours": row}}, rates)
    assert "wall" not in plain
    rows = {"ours": {**row, "wall": 4e-3, "replay": 5e-4}, "theirs": {**row, "wall": 7e-3}}
    lines = op_table.case_lines({**case, "peers": rows}, rates).splitlines()
    assert "wall ms" in lines[2]
    assert "replay ms" in lines[2]
    assert lines[3].split()[5:7] == ["4.000", "0.500"]
    assert lines[4].split()[5:7] == ["7.000", "-"]
