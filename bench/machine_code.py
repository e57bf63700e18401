"""What is in a compiled kernel: the instructions of its loops, by Triton's own disassembler.

A count, of instructions a warp carries out in a turn, and no time; but what a bias adds to a tile,
or a mask, shows in it where no card is at hand.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from pathlib import Path
from typing import NamedTuple

import triton

LABEL = re.compile(r"\s*(\.L_x_\d+):")
INSTRUCTION = re.compile(r"\s*/\*[0-9a-f]+\*/\s+(.*?);")
BRANCH = re.compile(r"\bBRA\b.*`\((\.L_x_\d+)\)")
SPILL = re.compile(r"\b(STL|LDL)\b")
MATRIX = re.compile(r"\b(HGMMA|HMMA|UTC\w*MMA)\b")


class Loop(NamedTuple):
    """A turn of one."""

    instructions: int
    spills: int
    """Of those the ones that write or read a thread's own memory."""


def disassembled(cubin: bytes) -> str:
    """nvdisasm's text of a kernel."""
    program = triton.knobs.nvidia.nvdisasm.path
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "kernel.cubin"
        file.write_bytes(cubin)
        done = subprocess.run([program, "-c", file], check=True, capture_output=True, text=True)
    return done.stdout


def loops(text: str) -> list[Loop]:
    """Each innermost loop that multiplies matrices, in order.

    A loop is what lies between a label and a branch back to it. One written once may be two here: a
    compiler takes turns out, or unrolls.
    """
    instructions: list[str] = []
    labels: dict[str, int] = {}
    for line in text.splitlines():
        if match := LABEL.match(line):
            labels[match[1]] = len(instructions)
        elif match := INSTRUCTION.match(line):
            instructions.append(match[1])
    spans = [
        (labels[match[1]], at)
        for at, instruction in enumerate(instructions)
        if (match := BRANCH.search(instruction)) and labels.get(match[1], at + 1) <= at
    ]
    multiplying = [
        (first, last)
        for first, last in spans
        if any(MATRIX.search(each) for each in instructions[first : last + 1])
    ]
    return [
        Loop(last - first + 1, sum(bool(SPILL.search(x)) for x in instructions[first : last + 1]))
        for first, last in sorted(multiplying)
        if not any(first <= a and b <= last and (a, b) != (first, last) for a, b in multiplying)
    ]
