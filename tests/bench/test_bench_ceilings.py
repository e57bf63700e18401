"""What a dtype is measured against is the unit that multiplies it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from bench.measure import ceilings, machine
from bench.measure.ceilings import NAMES, Ceilings, peak_for, peak_key


class Registers:
    """An extension whose registers reach so much."""

    def __init__(self, fp32: float, bf16: float | None) -> None:
        self.rates = {"float32": fp32, "bfloat16": bf16}

    def fma_peak(self, kind: str, **_: Any) -> float | None:
        rate = self.rates[kind]
        return None if rate is None else rate * 1e9


def measured(
    monkeypatch: pytest.MonkeyPatch, flags: set[str], gemm: float, largest: float, dot: float | None
) -> Ceilings:
    """The ceilings of a machine with these flags and rates of bf16."""

    def rate(dtype: torch.dtype, device: torch.device, sizes: Any = None) -> float:
        if dtype == torch.float32:
            return 160.0
        return gemm if sizes is None else largest

    monkeypatch.setattr(ceilings, "cpu_flags", lambda: frozenset(flags))
    monkeypatch.setattr(ceilings, "_gemm_gflops", rate)
    monkeypatch.setattr(ceilings, "_copy_gbs", lambda device: 20.0)
    monkeypatch.setattr(ceilings.extension, "load", lambda: Registers(180.0, dot))
    return ceilings.ceilings(torch.device("cpu"))


AMX = {"avx512f", "amx_bf16", "amx_tile"}


@pytest.mark.parametrize(
    ("flags", "gemm", "largest", "dot", "key", "rate"),
    [
        (AMX, 1700.0, 1800.0, 150.0, "bf16_tile_gflops", 1800.0),
        (AMX, 1900.0, 1800.0, 150.0, "bf16_tile_gflops", 1900.0),
        # oneDNN was told to leave the tiles alone: they are not what products are made with.
        (AMX, 120.0, 130.0, 150.0, "bf16_dot_gflops", 150.0),
        (AMX, 120.0, 130.0, None, "fma_gflops", 180.0),
        (set(), 120.0, 130.0, 150.0, "bf16_dot_gflops", 150.0),
        (set(), 37.0, 37.0, None, "fma_gflops", 180.0),
    ],
)
def test_tiles(
    monkeypatch: pytest.MonkeyPatch,
    flags: set[str],
    gemm: float,
    largest: float,
    dot: float | None,
    key: str,
    rate: float,
) -> None:
    found = measured(monkeypatch, flags, gemm, largest, dot)
    assert peak_key("bfloat16", found) == key
    assert peak_for("bfloat16", found) == rate
    assert peak_key("float32", found) == "fma_gflops"
    # Tiles of bf16 multiply no fp16.
    assert peak_key("float16", found) in ("bf16_dot_gflops", "fma_gflops")
    assert set(found) == set(NAMES)


def test_old_results_know_no_tiles() -> None:
    old: Ceilings = {"fma_gflops": 180.0, "bf16_dot_gflops": None, "gemm_bf16_gflops": 37.0}
    assert peak_key("bfloat16", old) == "fma_gflops"
    assert peak_key("bfloat16", {"gemm_bf16_gflops": 900.0}) == "gemm_bf16_gflops"
    assert peak_key("bfloat16", {}) is None
    assert peak_for("bfloat16", {}) is None


def test_flags(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "processor\t: 0\nflags\t\t: fpu avx2 amx_bf16\nvmx flags\t: x\n"
    monkeypatch.setattr(Path, "read_text", lambda self: text)
    assert machine.cpu_flags() == {"fpu", "avx2", "amx_bf16"}
    monkeypatch.setattr(Path, "read_text", lambda self: "nothing\n")
    assert machine.cpu_flags() == frozenset()


def test_a_product_is_timed() -> None:
    assert ceilings._gemm_gflops(torch.float32, torch.device("cpu"), (64, 128)) > 0
