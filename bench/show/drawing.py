"""A run's result file and its plot, where there is matplotlib."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

from bench.measure import record


def draw(path: Path) -> None:
    """Draw it, and say so; or why not."""
    if importlib.util.find_spec("matplotlib") is None:
        print("no plot: matplotlib is not installed")
        return
    from bench.show import plots

    for drawn in plots.draw(path):
        print(f"drawn: {drawn.name}")


def keep(path: Path | None, result: dict[str, Any], *, plot: bool) -> None:
    """Write a finished run's result, and say so; None: it is not kept."""
    if path is None:
        return
    record.write_result(path, result)
    print(f"written: {path.name}")
    if plot:
        draw(path)
