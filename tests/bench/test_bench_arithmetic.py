"""The benchmark's arithmetic: turns, spread, ratios, shares of the machine, what is right."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from bench import compare
from bench.compare import Case, judge
from bench.measure import clock, record
from bench.measure.ceilings import gemm_for, peak_for
from bench.show import machine_lines, op_table

CEILINGS = {
    "fma_gflops": 200.0,
    "bf16_dot_gflops": None,
    "gemm_gflops": 160.0,
    "gemm_bf16_gflops": 100.0,
    "copy_gbs": 20.0,
}


class Clock:
    """Says what it is told, and notes who ran."""

    def __init__(self, **seconds: float) -> None:
        self.seconds, self.ran = seconds, ""

    def runs(self) -> dict[str, object]:
        def run(name: str) -> object:
            return lambda: name

        return {name: run(name) for name in self.seconds}

    def __call__(self, run: object) -> float:
        name = run()  # type: ignore[operator]
        self.ran += name
        return self.seconds[name]


def test_turns_begin_with_another_each_round() -> None:
    watch = Clock(a=0.1, b=0.1, c=0.1)
    found = clock.in_turns(watch.runs(), repeats=3, clock=watch)
    assert watch.ran == "abcbcacab"
    assert found == {name: [0.1] * 3 for name in "abc"}


def test_turns_end_by_budget_and_by_limit() -> None:
    watch = Clock(a=0.1, b=3.0, c=30.0)
    found = clock.in_turns(watch.runs(), repeats=9, budget=5.0, least=2, limit=25.0, clock=watch)
    assert {name: len(times) for name, times in found.items()} == {"a": 9, "b": 2, "c": 1}


def test_summary() -> None:
    assert clock.summary([3.0, 1.0, 2.0]) == {
        "seconds": [3.0, 1.0, 2.0], "median": 2.0, "spread": 1.0
    }  # fmt: skip
    assert clock.summary([2.0])["spread"] is None


def test_ratios() -> None:
    medians = {"ours": 2.0, "theirs": 5.0}
    assert clock.ratios(medians, "ours") == {"ours": 1.0, "theirs": 2.5}
    assert clock.ratios(medians, None) == {"ours": None, "theirs": None}


@pytest.mark.parametrize(
    ("dtype", "dot", "peak", "gemm"),
    [
        ("float32", None, 200.0, 160.0),
        ("float32", 900.0, 200.0, 160.0),
        ("bfloat16", 900.0, 900.0, 100.0),
        ("bfloat16", None, 200.0, 100.0),
    ],
)
def test_what_a_dtype_is_measured_against(
    dtype: str, dot: float | None, peak: float, gemm: float
) -> None:
    found = {**CEILINGS, "bf16_dot_gflops": dot}
    assert (peak_for(dtype, found), gemm_for(dtype, found)) == (peak, gemm)
    # Without the extension, and on a GPU, torch's product is the only measure.
    assert peak_for(dtype, {**found, "fma_gflops": None, "bf16_dot_gflops": None}) == gemm


def test_shares() -> None:
    case = {"dtype": "float32", "gflop": 80.0, "gigabytes": 5.0}
    assert op_table.shares(case, 0.5, CEILINGS) == {
        "gflops": 160.0, "of_peak": 0.8, "of_gemm": 1.0, "gbs": 10.0, "of_copy": 0.5
    }  # fmt: skip
    assert op_table.shares(case, 0.5, {**CEILINGS, "copy_gbs": None})["of_copy"] is None


def tensors(**values: float) -> dict[str, torch.Tensor]:
    return {name: torch.tensor([1.0, value]) for name, value in values.items()}


@pytest.mark.parametrize(
    ("dtype", "name", "off", "naive", "skipped", "right"),
    [
        ("float32", "out", 2.9e-5, 0.0, 0.0, True),  # 1e-5 of an oracle as large as 3
        ("float32", "out", 3.1e-5, 0.0, 0.0, False),
        ("float32", "out", 1.9e-3, 1e-3, 0.0, True),
        ("bfloat16", "out", 1e-6, 0.0, 0.0, False),
        ("bfloat16", "out", 1.9e-3, 1e-3, 0.0, True),
        ("bfloat16", "out", 2.1e-3, 1e-3, 0.0, False),
        ("bfloat16", "out", 2.1e-3, 1e-3, 2e-4, True),
        ("bfloat16", "dq", 2.9e-3, 1e-3, 0.0, True),
        ("bfloat16", "dq", 3.1e-3, 1e-3, 1.0, False),  # skipping excuses no gradient
        ("bfloat16", "out", math.nan, 1e-3, 0.0, False),
    ],
)
def test_right_by_the_rule(
    dtype: str, name: str, off: float, naive: float, skipped: float, right: bool
) -> None:
    case = Case("", {}, dtype)
    truth, rough = ({name: torch.tensor([1.0, 3.0 + d]).double()} for d in (0.0, naive))
    got = {name: truth[name] + torch.tensor([0.0, off])}
    assert judge(case, got, rough, truth, skipped).right == right


def test_the_worst_result_decides() -> None:
    case = Case("", {}, "bfloat16")
    truth, naive = tensors(out=1.0, dq=1.0), tensors(out=1.1, dq=1.1)
    assert not judge(case, tensors(out=1.0, dq=1.5), naive, truth, 0.0).right
    assert not judge(case, tensors(out=1.5, dq=1.0), naive, truth, 0.0).right
    assert not judge(case, tensors(out=math.nan, dq=1.2), naive, truth, 0.0).right
    assert judge(case, tensors(out=1.1, dq=1.2), naive, truth, 0.0).right


def test_another_shape_is_no_answer() -> None:
    with pytest.raises(AssertionError, match="shapes"):
        compare.difference(torch.zeros(2, 1), torch.zeros(1, 2))


def test_ceilings_in_a_line() -> None:
    line = machine_lines.ceiling_line(CEILINGS)
    assert "200 fp32 multiply-adds" in line
    assert "20.0 GB/s copy" in line
    assert "bf16 dot" not in line


def test_result_files(tmp_path: Path) -> None:
    assert record.result_file("op", str(tmp_path / "x.json")) == tmp_path / "x.json"
    path = record.result_file("op", None)
    assert path.parent == record.RESULTS
    assert path.name.startswith("op-")
    record.write_result(tmp_path / "x.json", {"a": [1.23456789, None, "b"], "c": {"d": (1,)}})
    written = json.loads((tmp_path / "x.json").read_text())
    assert written == {"a": [1.23457, None, "b"], "c": {"d": [1]}}
