"""Reductions of whole blocks: at once, or Triton before 3.9 compiles them for no card of compute
capability 10, where a block comes from matrix units.

A compiler of one version is tested here, and this is what the others refuse: `bench/aot.py --check`
is run under them by hand.
"""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

pytest.importorskip("triton")

import pyenc_kernels

FOLDERS = ("attention", "disentangled")
"""Whose kernels reduce what matrix units gave."""
REDUCTIONS = {"sum", "max", "min"}


def reduces(node: ast.AST) -> bool:
    return (
        isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and isinstance(node.func.value, ast.Name)
        and node.func.value.id == "tl"
        and node.func.attr in REDUCTIONS
    )


@pytest.mark.parametrize("folder", FOLDERS)
def test_no_reduction_of_a_reduction(folder: str) -> None:
    found = []
    files = sorted((Path(pyenc_kernels.__file__).parent / folder).glob("*.py"))
    assert len(files) > 1
    for file in files:
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            if reduces(node) and any(map(reduces, ast.walk(node.args[0]))):  # type: ignore[attr-defined]
                found.append(f"{file.name}:{node.lineno}: {ast.unparse(node)}")  # type: ignore[attr-defined]
    assert not found
