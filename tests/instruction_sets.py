"""Running a test file as a script on one instruction set: the choice is made once a process."""

from __future__ import annotations

import pytest

from pyenc.ops import extension
from tests.scripts import run_script

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
    done = run_script(file, *arguments, PYENC_CPU_ISA=isa)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [isa]
