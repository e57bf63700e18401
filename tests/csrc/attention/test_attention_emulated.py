"""Attention's kernels of instruction sets that this processor lacks, compiled to do without.

All have the width and the tiles of AVX-512, in plain C++ (PYENC_EMULATE_BF16_DOT in
csrc/shared/simd.h). One build has pairs of bfloat16, one the tiles of matrix units (AMX) in plain
C++ too (PYENC_EMULATE_AMX in csrc/shared/tiles.h), the same in `make sanitize` under the
sanitizers, and one their instructions themselves, which fault where there are none and are then
carried out by amx_trap.cpp. In one file, so that what they share is compiled once. A processor that
has pairs or matrix units runs the same cases on them, and in emulation a little: of the tiles, with
which the pairs are compiled too.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.csrc import emulated
from tests.seeds import seed

pytestmark = emulated.needs_compiler

HALVES = ["halves", "halves skip", "halves others", "halves dropped"]
SPLIT = ["split", "split others"]
PAIRS, UNITS = "x86-64-v4-bf16", "x86-64-v4-amx"


@pytest.fixture(scope="module")
def extension(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("amx")
    return emulated.build(folder, emulated.TILES, openmp=emulated.flags_serve(["-fopenmp"], folder))


@pytest.fixture(scope="module")
def of_pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pairs")
    return emulated.build(folder, emulated.WIDE, openmp=emulated.flags_serve(["-fopenmp"], folder))


@pytest.mark.slow
@pytest.mark.parametrize("cases", emulated.chosen(PAIRS, HALVES, []))
def test_pairs(of_pairs: Path, cases: str) -> None:
    """On other numbers with PYENC_TEST_SEED."""
    emulated.check(of_pairs, cases, seed(1))


@pytest.mark.slow
@pytest.mark.parametrize(
    "cases",
    emulated.chosen(UNITS, [*HALVES, *SPLIT], ["halves a little", "split a little"]),
)
def test_matrix_units(extension: Path, cases: str) -> None:
    emulated.check(extension, cases, seed(1))


@emulated.only_sanitized
@pytest.mark.parametrize(
    ("flags", "cases"),
    [
        (emulated.TILES, ["halves a little", "split a little"]),
        (emulated.WIDE, ["halves a little"]),
    ],
    ids=["tiles", "pairs"],
)
def test_the_sanitizers_find_nothing(flags: list[str], cases: list[str], tmp_path: Path) -> None:
    emulated.check_sanitized(tmp_path, "attention", cases, flags)


@pytest.mark.slow
@pytest.mark.skipif(
    not (emulated.X86_64 and sys.platform == "linux"), reason="the trap is x86-64 Linux's"
)
def test_the_instructions_themselves(tmp_path: Path) -> None:
    flags = [*emulated.WIDE, "-mamx-tile", "-mamx-bf16"]
    if not emulated.flags_serve(flags, tmp_path):
        pytest.skip("the compiler knows no tiles")
    if "amx_tile" in Path("/proc/cpuinfo").read_text("utf-8").split():
        pytest.skip("nothing faults on a processor that has them: see the next test")
    trap = Path(__file__).parent / "amx_trap.cpp"
    extension = emulated.build(tmp_path, flags, openmp=True, trap=trap)
    emulated.check(extension, "halves trapped")


@pytest.mark.parametrize("cases", [*HALVES, *SPLIT])
def test_the_matrix_units_themselves(cases: str) -> None:
    """The package's own extension, where the processor has what the others stand for."""
    check_itself(UNITS, cases)


@pytest.mark.parametrize("cases", HALVES)
def test_the_dot_products_themselves(cases: str) -> None:
    check_itself(PAIRS, cases)


def check_itself(isa: str, cases: str) -> None:
    emulated.check(emulated.itself(isa), cases, seed(1), isa=isa, PYENC_CPU_ISA=isa)
