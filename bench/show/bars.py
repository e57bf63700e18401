"""Rates as bars: a panel a dtype or model, a group a case, a bar a peer, its spread on it."""

from __future__ import annotations

import textwrap
from collections.abc import Callable
from typing import Any, NamedTuple

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import Formatter, MaxNLocator, PercentFormatter, StrMethodFormatter

from .labels import SMALL, settle, shorten
from .op_table import shares
from .rates import Rate, rate_of, reason
from .style import FOOT, GREY, PAD, colours


class Panel(NamedTuple):
    """One panel."""

    title: str
    cases: list[dict[str, Any]]
    per: Callable[[dict[str, Any], float], float]
    """A case and its seconds to a rate."""
    label: str
    figures: Formatter
    mark: float | None = None
    """A rate with a line of its own."""


def op_bars(result: dict[str, Any]) -> Figure:
    """An op's bytes a second, or its arithmetic where only that counts, as shares."""
    ceilings = result["ceilings"]

    def share(case: dict[str, Any], seconds: float) -> float:
        rates = shares(case, seconds, ceilings)
        return (rates["of_copy"] if case["gigabytes"] else rates["of_peak"]) or 0.0

    of_what = "of the machine's copy\n(products: of its peak)"
    dtypes = dict.fromkeys(case["dtype"] for case in result["cases"])
    return _figure(
        [
            Panel(
                dtype, [case for case in result["cases"] if case["dtype"] == dtype], share, of_what,
                PercentFormatter(1), 1.0,
            )
            for dtype in dtypes
        ]
    )  # fmt: skip


def model_bars(result: dict[str, Any]) -> Figure:
    """Whole encoders: tokens a second."""
    models = dict.fromkeys(case["model"] for case in result["cases"])
    return _figure(
        [
            Panel(
                model, [case for case in result["cases"] if case["model"] == model],
                lambda case, seconds: case["tokens"] / seconds, "tokens a second",
                StrMethodFormatter("{x:,g}"),
            )
            for model in models
        ]
    )  # fmt: skip


def _figure(panels: list[Panel]) -> Figure:
    cases = [case for panel in panels for case in panel.cases]
    names = list(dict.fromkeys(n for c in cases for n in c["peers"] if "median" in c["peers"][n]))
    rows = max(len(panel.cases) for panel in panels)
    size = max(8.0, 5.2 * len(panels)), 1.8 + rows * (0.25 + 0.14 * max(len(names), 1))
    figure, axes = plt.subplots(1, len(panels), squeeze=False, layout="constrained", figsize=size)
    figure.get_layout_engine().set(rect=(0, FOOT / size[1], 1, 1 - FOOT / size[1]), w_pad=PAD)  # type: ignore[union-attr]
    handles: dict[str, Any] = {}
    missing = [
        (axis, text)
        for axis, panel in zip(axes[0], panels, strict=True)
        for text in _panel(axis, panel, names, handles)
    ]
    figure.legend(handles.values(), handles, loc="outside upper center", ncols=3, fontsize=8)
    settle(figure)
    for axis, text in missing:
        mark = axis.transData.transform((1.0, 0))[0] - 3 if axis.get_lines() else None
        end = axis.get_window_extent().x1
        shorten(text, end if mark is None else min(mark, end))
    return figure


def _panel(axis: Axes, panel: Panel, names: list[str], handles: dict[str, Any]) -> list[Any]:
    """Draw the bars; the texts where there is none."""
    height = 0.8 / max(len(names), 1)
    highest, texts = panel.mark or 0.0, []
    for i, (name, colour) in enumerate(colours(names).items()):
        places: list[float] = []
        rates: list[Rate] = []
        for row, case in enumerate(panel.cases):
            place = row + (i - (len(names) - 1) / 2) * height
            found = rate_of(case["peers"].get(name, {}), lambda s, case=case: panel.per(case, s))
            if found is not None:
                places.append(place)
                rates.append(found)
            elif why := reason(case["peers"].get(name, {})):
                texts.append(
                    axis.annotate(
                        why, (0, place), xytext=(2, 0), textcoords="offset points", va="center",
                        fontsize=SMALL - 1, color=colour,
                    )
                )  # fmt: skip
        if not rates:
            continue
        middle = [rate.middle for rate in rates]
        spread = [r.middle - r.low for r in rates], [r.high - r.middle for r in rates]
        handles[name] = axis.barh(
            places, middle, height * 0.9, color=colour, alpha=0.6, label=name, xerr=spread,
            error_kw={"ecolor": colour, "elinewidth": 1.1, "capsize": 2.0},
        )  # fmt: skip
        highest = max(highest, *(rate.high for rate in rates))
    if panel.mark is not None:
        axis.axvline(panel.mark, color=GREY, linestyle="--", linewidth=1)
    names_in_lines = ["\n".join(textwrap.wrap(case["name"], 24)) for case in panel.cases]
    axis.set_yticks(range(len(panel.cases)), names_in_lines, linespacing=1.0)
    axis.set_ylim(len(panel.cases) - 0.45, -0.55)
    axis.set_xlim(0, highest * 1.06 or 1.0)
    axis.set_title(panel.title)
    axis.set_xlabel(panel.label)
    axis.xaxis.set_major_locator(MaxNLocator(5))
    axis.xaxis.set_major_formatter(panel.figures)
    return texts
