"""No kernel is chosen by a clock: what is imported to measure time stays in the command line."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

CLOCKS = {"time", "timeit", "datetime", "torch.utils.benchmark", "triton.testing"}
NAMES = {"perf_counter", "monotonic", "process_time", "thread_time", "elapsed_time", "autotune"}


def clocks_in(source: str) -> Iterator[str]:
    """Lines that could tell how long something took."""
    for node in ast.walk(ast.parse(source)):
        found: list[str] = []
        if isinstance(node, ast.Import):
            found = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found = [node.module or "", *(f"{node.module}.{each.name}" for each in node.names)]
        elif isinstance(node, ast.Attribute | ast.Assign):
            text = ast.unparse(node)
            if text.rpartition(".")[2] in NAMES or text.endswith("cudnn.benchmark = True"):
                yield f"{node.lineno}: {text}"
        for name in found:
            if name in CLOCKS or name.partition(".")[0] in CLOCKS:
                yield f"{node.lineno}: {name}"


def test_no_clock_below_the_command_line() -> None:
    files = [
        path
        for package in ("pyenc", "kernels/pyenc_kernels")
        for path in sorted((ROOT / package).rglob("*.py"))
        if "cli" not in path.relative_to(ROOT / package).parts
    ]
    assert len(files) > 20
    bad = [f"{path.name}:{line}" for path in files for line in clocks_in(path.read_text("utf-8"))]
    assert not bad, "\n".join(bad)


@pytest.mark.parametrize(
    "source",
    [
        "import time",
        "def f():\n    from time import perf_counter",
        "import torch.utils.benchmark as b",
        "from torch.utils import benchmark",
        "start.elapsed_time(end)",
        "import triton\n@triton.autotune(configs=[], key=[])\ndef f(): ...",
        "torch.backends.cudnn.benchmark = True",
    ],
)
def test_a_clock_is_found(source: str) -> None:
    assert list(clocks_in(source))
    assert not list(clocks_in("from .time import x\ntimes = 3\nx.benchmark = False"))
