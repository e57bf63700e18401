"""A peer's rate in a case with its spread, or why there is none."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

LONGEST = 44
"""Characters of a reason in a plot; the tables have all of it."""


class Rate(NamedTuple):
    """Of the slowest run, the median and the fastest."""

    low: float
    middle: float
    high: float


def rate_of(row: dict[str, Any], per: Callable[[float], float]) -> Rate | None:
    """Of a row of results, None where it was not timed; per: seconds to a rate."""
    if "median" not in row:
        return None
    seconds = row["seconds"]
    return Rate(per(max(seconds)), per(row["median"]), per(min(seconds)))


def reason(row: dict[str, Any]) -> str:
    """Why a row was not timed, as short as a plot wants it; "" where nothing is known."""
    text = str(row.get("error", "")).partition("\n")[0]
    lowered = text.lower()
    memory = "outofmemory", "out of memory", "allocate memory", "alloc_cpu", "memoryerror"
    if any(word in lowered.replace("enough ", "") for word in memory):
        return "out of memory"
    for prefix in ("cannot serve: ", "left out: "):
        text = text.removeprefix(prefix)
    return text if len(text) <= LONGEST else text[: LONGEST - 1].rstrip(" ,:;") + "…"
