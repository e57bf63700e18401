"""A result file's plot, where there is matplotlib."""

from __future__ import annotations

import importlib.util
from pathlib import Path


def draw(path: Path) -> None:
    """Draw it, and say so; or why not."""
    if importlib.util.find_spec("matplotlib") is None:
        print("no plot: matplotlib is not installed")
        return
    from bench.show import plots

    for drawn in plots.draw(path):
        print(f"drawn: {drawn.name}")
