"""Draws result files as SVG beside them, from what is in them alone.

Attention and linear layers: throughput over the length, with the machine's ceilings as lines. The
other ops: bytes a second, a bar a peer and case. Whole encoders: tokens a second. The thin bars are
the slowest and the fastest run.
"""

from __future__ import annotations

import json
import textwrap
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("svg")

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from .bars import model_bars, op_bars
from .labels import SMALL
from .lines import lines
from .style import STYLE


def draw(path: Path) -> list[Path]:
    """Draw one result file.

    Returns:
        The files drawn: beside `path`, of its name; none where it holds no cases.
    """
    result = json.loads(path.read_text("utf-8"))
    if not result.get("cases"):
        return []
    with mpl.rc_context(STYLE):
        made = figure(result)
        out = path.with_suffix(".svg")
        # No date inside: the same figures draw the same file.
        made.savefig(out, metadata={"Date": None})
        plt.close(made)
    return [out]


def figure(result: dict[str, Any]) -> Figure:
    """The plot of a result, in the style that is set."""
    cases = result["cases"]
    over_length = [case for case in cases if case.get("series")]
    if "model" in cases[0]:
        made = model_bars(result)
    elif over_length:
        made = lines(result, over_length)
    else:
        made = op_bars(result)
    letters = int(made.get_figwidth() * 72 / (SMALL * 0.6))
    text = textwrap.wrap(where(result), letters, max_lines=2)
    made.text(0.01, 0.004, "\n".join(text), fontsize=SMALL, linespacing=1.0, va="bottom")
    return made


def where(result: dict[str, Any]) -> str:
    """The line under a plot: the machine and the versions."""
    e = result["environment"]
    machine = e.get("gpu", {}).get("name") or (
        f"{e['cpu']}, {e['cores']} cores, {e['instruction_set']}, {e['threads']} threads"
    )
    return f"{machine}; torch {e['versions']['torch']}; {e['date'][:10]}, {e['commit']}"
