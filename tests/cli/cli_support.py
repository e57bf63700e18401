"""What the tests of the command line share beside fixtures.

A module of its own name: `conftest` is many.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import pyenc

ROOT = Path(__file__).parents[2]
GOLDEN = Path(__file__).parents[1] / "golden"
ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "kernels")])}

TEXTS = [
    "why is the sky blue?",
    "",
    "sunlight is scattered by the air",
    "Zwölf Boxkämpfer 東京 🙂",
    "  blanks at both ends  ",
    "a line separator\u2028is no line end, nor is \x0b or \x85",
    "one",
    "two three",
    "four five six",
    "the sea kept its own time " * 5,
]


class Said(NamedTuple):
    status: int
    out: str
    err: str


Cli = Callable[..., Said]


def expected(model: Path, texts: list[str] = TEXTS, **options: Any) -> np.ndarray:
    """What the API gives."""
    vectors: np.ndarray = pyenc.load(model).encode(texts, **options)
    return vectors


def python(*argv: str) -> subprocess.CompletedProcess[str]:
    """A fresh interpreter that finds this tree's packages."""
    return subprocess.run(
        [sys.executable, *argv],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def waiting(model: Path, where: Path) -> subprocess.Popen[bytes]:
    """A run of `pyenc embed` into o.npy that has parts and waits for more of its input."""
    process = subprocess.Popen(
        [sys.executable, "-m", "pyenc", "embed", model, "-o", "o.npy", "--progress"],
        env={**ENVIRONMENT, "OMP_NUM_THREADS": "1"},
        cwd=where,
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdin is not None
    assert process.stderr is not None
    process.stdin.write(b"the sea kept its own time\n" * 1200)
    process.stdin.flush()
    said = b""
    while b"texts" not in said:  # of the bar, once a unit is done
        byte = process.stderr.read(1)
        assert byte, said
        said += byte
    return process
