"""Running a test file as a script on one instruction set: the choice is made once a process."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pyenc.ops import extension
from tests.allocator import KEEPING
from tests.scripts import run_script

ROOT = Path(__file__).resolve().parents[1]

ISAS = ["generic", "x86-64-v3", "x86-64-v4", "x86-64-v4-bf16", "x86-64-v4-amx"]


def run_on(isa: str, file: str, *arguments: str, only_others: bool = True) -> None:
    """The script, which must end well and print the instruction set that served it.

    only_others: the file's tests run in this process too, so it is skipped for the instruction set
    that serves here.
    """
    module = extension.load()
    assert module is not None
    if isa not in module.available_isas():
        pytest.skip(f"this processor or this build has no {isa}")
    if only_others and isa == extension.isa():
        pytest.skip(f"the tests of this process run on {isa}")
    paths = [str(ROOT), str(ROOT / "kernels"), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | KEEPING | {"PYTHONPATH": os.pathsep.join(paths)}
    done = run_script(file, arguments, environment, {"PYENC_CPU_ISA": isa})
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [isa]
