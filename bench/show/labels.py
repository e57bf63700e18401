"""Labels where they are read: beside a panel, at the end of a line; none lies on another.

Places are found in pixels, so the layout has to be settled: `settle` first, and nothing that would
move the panels after it.
"""

from __future__ import annotations

import itertools
import textwrap
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Annotation, Text
from matplotlib.transforms import Bbox

from .style import GREY

SMALL = 7
ROOM = 1.15
"""How much larger than measured a text may come out in a reader's font."""


class End(NamedTuple):
    """What is said where a line ends."""

    x: float
    y: float
    text: str
    colour: str


def settle(figure: Figure) -> None:
    """Lay the figure out and leave it so."""
    for _ in range(2):  # what is long beside a panel makes it narrower, and its ticks others
        figure.draw_without_rendering()
    figure.set_layout_engine("none")


def beside(panel: Axes, rates: dict[str, float]) -> list[Annotation]:
    """A text right of the panel at each height, in data; `spread` moves them apart."""
    return [
        panel.annotate(
            text, (1.0, rate), xycoords=("axes fraction", "data"), xytext=(9, 0),
            textcoords="offset points", fontsize=SMALL, va="center", ha="left",
            annotation_clip=False, linespacing=1.0,
            arrowprops={"arrowstyle": "-", "color": GREY, "linewidth": 0.6, "shrinkB": 0},
        )
        for text, rate in rates.items()
    ]  # fmt: skip


def spread(labels: Iterable[Annotation]) -> None:
    """Move labels of `beside` up and down until none touches another, each as little as may be."""
    placed = sorted(labels, key=lambda label: extent(label).y0)
    if not placed:
        return
    heights = [extent(label).height * ROOM for label in placed]
    middles = [(box.y0 + box.y1) / 2 for box in map(extent, placed)]
    # Stacks of labels that touch share their displacement.
    stacks: list[list[int]] = []
    centres: list[float] = []
    for i in range(len(placed)):
        stacks.append([i])
        centres.append(middles[i])
        while len(stacks) > 1 and _bottom(stacks[-1], centres[-1], heights) < _top(
            stacks[-2], centres[-2], heights
        ):
            merged = stacks[-2] + stacks.pop()
            centres.pop()
            stacks[-1] = merged
            centres[-1] = sum(middles[j] for j in merged) / len(merged)
    scale = 72 / placed[0].get_figure(root=True).dpi
    for stack, centre in zip(stacks, centres, strict=True):
        at = _bottom(stack, centre, heights)
        for i in stack:
            x, y = placed[i].get_position()
            placed[i].set_position((x, y + (at + heights[i] / 2 - middles[i]) * scale))
            at += heights[i]


def _bottom(stack: list[int], centre: float, heights: list[float]) -> float:
    return centre - sum(heights[i] for i in stack) / 2


def _top(stack: list[int], centre: float, heights: list[float]) -> float:
    return centre + sum(heights[i] for i in stack) / 2


def at_ends(panel: Axes, ends: Iterable[End]) -> list[Annotation]:
    """A text near the end of each line, off every line and off each other, inside the panel."""
    taken: list[Bbox] = []
    drawn = _points_on_lines(panel)
    made = []
    for end in ends:
        label = panel.annotate(
            "\n".join(textwrap.wrap(end.text, 22)), (end.x, end.y), xytext=(0, 0),
            textcoords="offset points", fontsize=SMALL - 0.5, color=end.colour, linespacing=1.0,
            ha="center", va="center",
            arrowprops={
                "arrowstyle": "-", "color": end.colour, "linewidth": 0.6, "linestyle": ":",
                "shrinkA": 0, "shrinkB": 3,
            },
        )  # fmt: skip
        box = _best_place(panel, label, taken, drawn)
        taken.append(box)
        made.append(label)
    return made


def _best_place(panel: Axes, label: Annotation, taken: list[Bbox], drawn: np.ndarray) -> Bbox:
    """Move the label to where it hides nothing, the nearest such place; its box there."""
    own = extent(label)
    width, height = own.width * ROOM / 2, own.height * ROOM / 2
    x, y = (own.x0 + own.x1) / 2, (own.y0 + own.y1) / 2
    inside = panel.get_window_extent()
    scale = 72 / panel.get_figure(root=True).dpi
    across = np.linspace(inside.x0 + width, inside.x1 - width, 25)
    up = np.linspace(inside.y0 + height, inside.y1 - height, 41)
    places = np.stack(np.meshgrid(across, up), -1).reshape(-1, 2)
    cost = np.hypot(*(places - (x, y)).T)
    near_x = abs(places[:, None, 0] - drawn[None, :, 0]) < width + 2
    near_y = abs(places[:, None, 1] - drawn[None, :, 1]) < height + 2
    cost += 50.0 * (near_x & near_y).sum(1)
    for box in taken:
        apart_x = (places[:, 0] - width > box.x1) | (places[:, 0] + width < box.x0)
        apart_y = (places[:, 1] - height > box.y1) | (places[:, 1] + height < box.y0)
        cost += 1e6 * ~(apart_x | apart_y)
    to_x, to_y = places[cost.argmin()]
    label.set_position(((to_x - x) * scale, (to_y - y) * scale))
    return Bbox([[to_x - width, to_y - height], [to_x + width, to_y + height]])


def _points_on_lines(panel: Axes) -> np.ndarray:
    """Pixels along everything that is drawn as a line, (points, 2)."""
    found = [np.empty((0, 2))]
    for line in panel.get_lines():
        corners = line.get_transform().transform(np.column_stack(line.get_data()).astype(float))
        found.append(corners)
        for start, end in itertools.pairwise(corners if line.get_linestyle() != "None" else ()):
            found.append(np.linspace(start, end, 120))
    for collection in panel.collections:  # the bars of spread
        for path in collection.get_paths():
            corners = collection.get_transform().transform(path.vertices)
            for start, end in itertools.pairwise(corners):
                found.append(np.linspace(start, end, 20))
    # A pixel or two apart they say the same.
    return np.unique((np.concatenate(found) / 2).round(), axis=0) * 2


def shorten(text: Text, right: float) -> None:
    """Cut a text's end until it ends left of that pixel."""
    while extent(text).x1 > right and len(text.get_text()) > 4:
        text.set_text(text.get_text().rstrip("…")[:-1].rstrip() + "…")


def extent(text: Text) -> Bbox:
    """The box of the letters alone, without an annotation's line."""
    text.get_window_extent()  # an annotation's place is worked out when it is asked for
    return Text.get_window_extent(text)
