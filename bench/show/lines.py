"""Throughput over the length: a panel a dtype and series, a line a peer, its spread as bars."""

from __future__ import annotations

import math
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, LogLocator, MaxNLocator, StrMethodFormatter

from bench.measure.ceilings import NAMES, gemm_key, peak_key

from .labels import End, at_ends, beside, settle, spread
from .rates import Rate, rate_of, reason
from .style import FOOT, GREY, PAD, line_styles

MARGIN = 1.12
"""Beyond the lowest and the highest of what is drawn, on a logarithmic axis."""


def lines(result: dict[str, Any], cases: list[dict[str, Any]]) -> Figure:
    """The figure, `FOOT` inches left free below."""
    dtypes = list(dict.fromkeys(case["dtype"] for case in cases))
    series = list(dict.fromkeys(case["series"] for case in cases))
    size = max(7.0, 4.2 * len(series)) + 1.1, 2.9 * len(dtypes) + 0.9
    figure, panels = plt.subplots(
        len(dtypes), len(series), squeeze=False, sharex=True, sharey="row", layout="constrained",
        figsize=size,
    )  # fmt: skip
    figure.get_layout_engine().set(rect=(0, FOOT / size[1], 1, 1 - FOOT / size[1]), w_pad=PAD)  # type: ignore[union-attr]
    styles = line_styles(list(dict.fromkeys(name for case in cases for name in case["peers"])))
    names, ends = [], {}
    for i, dtype in enumerate(dtypes):
        ceilings = _ceilings(dtype, result["ceilings"])
        drawn = list(ceilings.values())
        for j, one in enumerate(series):
            panel = panels[i][j]
            chosen = [c for c in cases if c["dtype"] == dtype and c["series"] == one]
            found, ends[panel] = _panel(panel, chosen, styles)
            drawn += [x for rate in found for x in rate]
            for rate in ceilings.values():
                panel.axhline(rate, color=GREY, linestyle="--", linewidth=1)
            panel.set_title(f"{one}, {dtype}")
            _length_axis(panel, sorted({case["at"] for case in chosen}))
        _rate_axis(panels[i][0], drawn)
        panels[i][0].set_ylabel("GFLOP/s of dense work")
        texts = {f"{name}\n{rate:,.0f} GFLOP/s": rate for name, rate in ceilings.items()}
        names.append(beside(panels[i][-1], texts))
    for panel in panels[-1]:
        panel.set_xlabel("tokens a sequence" if result["op"] == "attention" else "tokens")
    handles = {
        label: handle
        for row in panels
        for panel in row
        for handle, label in zip(*panel.get_legend_handles_labels(), strict=True)
    }
    figure.legend(handles.values(), handles, loc="outside upper center", ncols=3, fontsize=8)
    settle(figure)
    for labels in names:
        spread(labels)
    for panel, at in ends.items():
        at_ends(panel, at)
    return figure


def _panel(
    panel: Axes, cases: list[dict[str, Any]], styles: dict[str, dict[str, Any]]
) -> tuple[list[Rate], list[End]]:
    """Draw the lines; what is drawn, and what is to be said at their ends."""
    cases = sorted(cases, key=lambda case: case["at"])
    drawn, ends = [], []
    span = _span([case["at"] for case in cases])
    for i, (name, style) in enumerate(styles.items()):
        # Beside each other, so that no spread hides another.
        aside = math.exp(span * 0.005 * (i - (len(styles) - 1) / 2))
        points = {}
        for case in cases:
            per = case["gflop"].__truediv__
            if (rate := rate_of(case["peers"].get(name, {}), per)) is not None:
                points[case["at"]] = rate
        if not points:
            continue
        middle = [rate.middle for rate in points.values()]
        below = [rate.middle - rate.low for rate in points.values()]
        above = [rate.high - rate.middle for rate in points.values()]
        panel.errorbar(
            [at * aside for at in points], middle, yerr=(below, above), label=name,
            capsize=2.5, elinewidth=1.0, capthick=1.0, **style,
        )  # fmt: skip
        drawn += points.values()
        ends += _ends(cases, name, points, aside, str(style["color"]))
    return drawn, ends


def _ends(
    cases: list[dict[str, Any]], name: str, points: dict[int, Rate], aside: float, colour: str
) -> list[End]:
    """Where the line ends before the others do, or begins after them, with the peer's reason."""
    found = []
    later = [case for case in cases if case["at"] > max(points)]
    earlier = [case for case in cases if case["at"] < min(points)]
    for at, missing in ((max(points), later[:1]), (min(points), earlier[-1:])):
        for case in missing:
            if why := reason(case["peers"].get(name, {})):
                found.append(End(at * aside, points[at].middle, f"{case['at']:,}: {why}", colour))
    return found


def _length_axis(panel: Axes, at: list[int]) -> None:
    panel.set_xscale("log")
    margin = math.exp(0.09 * _span(at))
    panel.set_xlim(at[0] / margin, at[-1] * margin)
    panel.set_xticks(at, [f"{n:,}" for n in at])
    panel.minorticks_off()


def _span(at: list[int]) -> float:
    """Of the lengths, on a logarithmic axis; 1 for a single one."""
    return math.log(max(at) / min(at)) or 1.0


def _rate_axis(panel: Axes, drawn: list[float]) -> None:
    """All of the row's lines, their spread and the ceilings, and figures beside it."""
    low, high = min(drawn) / MARGIN, max(drawn) * MARGIN
    panel.set_yscale("log")
    panel.set_ylim(low, high)
    for each in (panel, *panel.get_shared_y_axes().get_siblings(panel)):
        each.minorticks_off()
        each.grid(True)
    if high / low < 8:  # 1, 2 and 5 would leave an axis with a figure or none
        ticks = MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]).tick_values(low, high)
        panel.yaxis.set_major_locator(FixedLocator([t for t in ticks if low <= t <= high]))
    else:
        panel.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    panel.yaxis.set_major_formatter(StrMethodFormatter("{x:,g}"))


def _ceilings(dtype: str, found: dict[str, float | None]) -> dict[str, float]:
    """What the machine reaches in this dtype, in matrix products and at most; by name."""
    keys = dict.fromkeys((gemm_key(dtype), peak_key(dtype, found)))
    rates = {NAMES[key]: found.get(key) for key in keys if key is not None}
    return {name: rate for name, rate in rates.items() if rate is not None}
