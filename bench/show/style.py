"""How plots look: grey text on no background, readable on white and on black."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

GREY = "#808890"
COLOURS = (
    "#e4572e", "#2e86de", "#27ae60", "#a569bd", "#d4a017", "#17a2a2", "#c0587e", "#7f8c4d",
    "#5b6ee1", "#b9770e", "#16a085", "#cb4335", "#6c7a89", "#9b8b3a",
)  # fmt: skip
PAD = 0.12
"""Inches beside a panel: a text may come out wider in a reader's font than it was measured."""
FOOT = 0.3
"""Inches below, for two lines of where it was measured."""
MARKERS = "osD^vP*Xphd<>H"
STYLE = {
    "text.color": GREY, "axes.labelcolor": GREY, "axes.edgecolor": GREY, "xtick.color": GREY,
    "ytick.color": GREY, "grid.color": GREY, "grid.alpha": 0.25, "font.size": 9,
    # Text stays text: files stay small, and change little when a figure does.
    "svg.fonttype": "none", "svg.hashsalt": "pyenc", "axes.spines.top": False,
    "axes.spines.right": False, "legend.frameon": False, "savefig.transparent": True,
}  # fmt: skip


def colours(names: Sequence[str]) -> dict[str, str]:
    """The same for a peer in every panel."""
    return {name: COLOURS[i % len(COLOURS)] for i, name in enumerate(names)}


def line_styles(names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """The same colour and mark for a peer in every panel; ours thick."""
    return {
        name: {
            "color": colour, "marker": MARKERS[i % len(MARKERS)], "markersize": 4.5,
            "linewidth": 2.4 if name.startswith("pyenc") else 1.2,
        }
        for i, (name, colour) in enumerate(colours(names).items())
    }  # fmt: skip
