"""The products by parts and of bfloat16 where a processor has no matrix units: in plain C++, and
where it has them.

The same cases on both (product_cases.py, bf16_cases.py), each in a process of its own; and the
product of few rows, also where it has no instructions for pairs of bfloat16.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.csrc import emulated
from tests.seeds import seed

pytestmark = emulated.needs_compiler

UNITS = "x86-64-v4-amx"
CASES = ["product", "bf16 product", "few rows"]
A_LITTLE = ["product a little", "bf16 product a little"]


@pytest.fixture(scope="module")
def extension(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("linear")
    openmp = emulated.flags_serve(["-fopenmp"], folder)
    return emulated.build(folder, emulated.TILES, openmp=openmp, op="linear")


@pytest.mark.slow
@pytest.mark.parametrize("cases", emulated.chosen(UNITS, CASES, A_LITTLE))
def test_in_plain_cpp(extension: Path, cases: str) -> None:
    emulated.check(extension, cases, seed(1))


@emulated.only_sanitized
def test_the_sanitizers_find_nothing(tmp_path: Path) -> None:
    emulated.check_sanitized(tmp_path, "linear", [*A_LITTLE, "few rows"])


@pytest.mark.parametrize("cases", CASES)
def test_the_matrix_units_themselves(cases: str) -> None:
    """On other numbers with PYENC_TEST_SEED."""
    emulated.check(emulated.itself(UNITS), cases, seed(1), isa=UNITS, PYENC_CPU_ISA=UNITS)
