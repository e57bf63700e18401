"""Draws results from their JSON files alone, as SVG beside them: redrawn without measuring.

    python bench/plots.py bench/results/attention-*.json

Attention and linear layers: throughput over the length, with the machine's ceilings as lines. The
other ops: bytes a second, a bar a peer and case. Grey text on no background, readable on white and
on black.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("svg")

import matplotlib.pyplot as plt
from ceilings import NAMES, gemm_for, peak_for
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, PercentFormatter, StrMethodFormatter
from table import shares

GREY = "#808890"
COLOURS = ("#e4572e", "#2e86de", "#27ae60", "#a569bd", "#d4a017", "#17a2a2", "#c0587e", "#7f8c4d")
MARKERS = "osD^vP*X"
STYLE = {
    "text.color": GREY, "axes.labelcolor": GREY, "axes.edgecolor": GREY, "xtick.color": GREY,
    "ytick.color": GREY, "grid.color": GREY, "grid.alpha": 0.25, "font.size": 9,
    # Text stays text: files stay small, and change little when a figure does.
    "svg.fonttype": "none", "svg.hashsalt": "pyenc", "axes.spines.top": False,
    "axes.spines.right": False, "legend.frameon": False, "savefig.transparent": True,
}  # fmt: skip


def draw(path: Path) -> list[Path]:
    """Draw one result file.

    Returns:
        The files drawn: beside `path`, of its name.
    """
    result = json.loads(path.read_text("utf-8"))
    with mpl.rc_context(STYLE):
        lines = [case for case in result["cases"] if case["series"]]
        figure = _lines(result, lines) if lines else _bars(result)
        figure.text(0.01, 0.005, where(result), fontsize=7)
        out = path.with_suffix(".svg")
        # No date inside: the same figures draw the same file.
        figure.savefig(out, metadata={"Date": None})
        plt.close(figure)
    return [out]


def where(result: dict[str, Any]) -> str:
    """The line under a plot: the machine and the versions."""
    e = result["environment"]
    machine = e.get("gpu", {}).get("name") or (
        f"{e['cpu']}, {e['cores']} cores, {e['instruction_set']}, {e['threads']} threads"
    )
    return f"{machine}; torch {e['versions']['torch']}; {e['date'][:10]}, {e['commit']}"


def _lines(result: dict[str, Any], cases: list[dict[str, Any]]) -> Figure:
    """A panel a dtype and series: GFLOP/s over the length, a line a peer."""
    dtypes = list(dict.fromkeys(case["dtype"] for case in cases))
    series = list(dict.fromkeys(case["series"] for case in cases))
    width = max(7.0, 4.2 * len(series))
    figure, panels = plt.subplots(
        len(dtypes), len(series), squeeze=False, sharex=True, sharey="row", layout="constrained",
        figsize=(width, 2.9 * len(dtypes) + 0.9),
    )  # fmt: skip
    figure.get_layout_engine().set(rect=(0, 0.03, 1, 0.97))  # type: ignore[union-attr]
    styles = _styles(cases)
    for i, dtype in enumerate(dtypes):
        for j, one in enumerate(series):
            panel = panels[i][j]
            chosen = [c for c in cases if c["dtype"] == dtype and c["series"] == one]
            for name, style in styles.items():
                points = [
                    (case["at"], case["gflop"] / case["peers"][name]["median"])
                    for case in chosen
                    if "median" in case["peers"].get(name, {})
                ]
                if points:
                    panel.plot(*zip(*sorted(points), strict=True), label=name, **style)
            _ceilings(panel, dtype, result["ceilings"])
            panel.set(title=f"{one}, {dtype}", xscale="log", yscale="log")
            at = sorted({case["at"] for case in chosen})
            panel.set_xticks(at, [f"{n:,}" for n in at])
            panel.minorticks_off()
            panel.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            panel.yaxis.set_major_formatter(StrMethodFormatter("{x:,g}"))
            panel.grid(True)
        panels[i][0].set_ylabel("GFLOP/s of dense work")
    for panel in panels[-1]:
        panel.set_xlabel("tokens a sequence" if result["op"] == "attention" else "tokens")
    handles = {
        label: handle
        for row in panels
        for panel in row
        for handle, label in zip(*panel.get_legend_handles_labels(), strict=True)
    }
    figure.legend(handles.values(), handles, loc="outside upper center", ncols=3, fontsize=8)
    return figure


def _styles(cases: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The same colour and mark for a peer in every panel; ours thick."""
    names = list(dict.fromkeys(name for case in cases for name in case["peers"]))
    styles = {}
    for i, name in enumerate(names):
        ours = name.startswith("pyenc")
        styles[name] = {
            "color": COLOURS[i % len(COLOURS)], "marker": MARKERS[i % len(MARKERS)],
            "markersize": 4.5, "linewidth": 2.4 if ours else 1.2,
        }  # fmt: skip
    return styles


def _ceilings(panel: Axes, dtype: str, ceilings: dict[str, float | None]) -> None:
    """Lines of what the machine reaches in registers and in matrix products of this dtype."""
    peak, gemm = peak_for(dtype, ceilings), gemm_for(dtype, ceilings)
    rates = {_name(ceilings, gemm): gemm} | {_name(ceilings, peak): peak}
    for name, rate in rates.items():
        if rate is not None:
            panel.axhline(rate, color=GREY, linestyle="--", linewidth=1)
            panel.annotate(
                f"{name}, {rate:,.0f}", (0.01, rate), xycoords=("axes fraction", "data"),
                xytext=(0, 2), textcoords="offset points", fontsize=7,
            )  # fmt: skip


def _name(ceilings: dict[str, float | None], rate: float | None) -> str:
    return next((NAMES[key] for key, value in ceilings.items() if value == rate), "")


def _bars(result: dict[str, Any]) -> Figure:
    """A panel a dtype: GB/s (GFLOP/s where only arithmetic counts) of every peer in every case."""
    cases = result["cases"]
    dtypes = list(dict.fromkeys(case["dtype"] for case in cases))
    names = list(dict.fromkeys(n for c in cases for n in c["peers"] if "median" in c["peers"][n]))
    rows = max(sum(case["dtype"] == dtype for case in cases) for dtype in dtypes)
    size = max(7.0, 4.8 * len(dtypes)), 1.4 + rows * (0.25 + 0.14 * max(len(names), 1))
    figure, panels = plt.subplots(1, len(dtypes), squeeze=False, layout="constrained", figsize=size)
    figure.get_layout_engine().set(rect=(0, 0.04, 1, 0.96))  # type: ignore[union-attr]
    for panel, dtype in zip(panels[0], dtypes, strict=True):
        chosen = [case for case in cases if case["dtype"] == dtype]
        height = 0.8 / max(len(names), 1)
        for i, name in enumerate(names):
            places, rates = [], []
            for row, case in enumerate(chosen):
                if "median" in case["peers"].get(name, {}):
                    places.append(row + (i - (len(names) - 1) / 2) * height)
                    rates.append(_rate(case, case["peers"][name]["median"], result["ceilings"]))
            colour = COLOURS[i % len(COLOURS)]
            panel.barh(places, rates, height * 0.9, color=colour, label=name)
        panel.axvline(1, color=GREY, linestyle="--", linewidth=1)
        panel.set_yticks(range(len(chosen)), [case["name"] for case in chosen])
        panel.invert_yaxis()
        panel.set(title=dtype, xlabel="of the machine's copy (products: of its peak)")
        panel.xaxis.set_major_formatter(PercentFormatter(1))
    handles, labels = panels[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=3, fontsize=8)
    return figure


def _rate(case: dict[str, Any], seconds: float, ceilings: dict[str, float | None]) -> float:
    rates = shares(case, seconds, ceilings)
    share = rates["of_copy"] if case["gigabytes"] else rates["of_peak"]
    return share or 0.0


if __name__ == "__main__":
    for argument in sys.argv[1:]:
        for drawn in draw(Path(argument)):
            print(f"drawn: {drawn.name}")
