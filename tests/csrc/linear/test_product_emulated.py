"""The products by parts and of bfloat16 where a processor has no matrix units: in plain C++, and
where it has them.

The same cases on both (product_cases.py, bf16_cases.py), each in a process of its own; and the
product of few rows, also where it has no instructions for pairs of bfloat16.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from pyenc.ops import extension as package
from tests.csrc import emulated
from tests.seeds import seed

pytestmark = emulated.needs_compiler


@pytest.mark.slow
def test_in_plain_cpp(tmp_path: Path) -> None:
    openmp = emulated.flags_serve(["-fopenmp"], tmp_path)
    extension = emulated.build(tmp_path, emulated.TILES, openmp=openmp, op="linear")
    for cases in ("product", "bf16 product", "few rows"):
        emulated.check(extension, cases, seed(1))


@emulated.only_sanitized
def test_the_sanitizers_find_nothing(tmp_path: Path) -> None:
    emulated.check_sanitized(
        tmp_path, "linear", ["product a little", "bf16 product a little", "few rows"]
    )


@pytest.mark.parametrize("draw", [1, 2, 3])
def test_the_matrix_units_themselves(draw: int) -> None:
    module, isa = package.load(), "x86-64-v4-amx"
    if module is None or isa not in module.available_isas():
        pytest.skip(f"this processor or this build has no {isa}")
    path = Path(str(module.__file__))
    for cases in ("product", "bf16 product", "few rows"):
        emulated.check(path, cases, seed(draw), isa=isa, PYENC_CPU_ISA=isa)
