"""What fewer bits than float32's would give: speeds and errors that were measured, as data.

precisions.json: "speed" by kind of processor, as the table of linear layers goes by it; "error" by
family, of the one checkpoint that its source names.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ..ops.linear import processor

FILE = Path(__file__).with_name("precisions.json")

PRECISIONS = {"bfloat16": "--dtype bfloat16", "int8": "--quantize int8"}
"""And the option that asks for each."""


def known(family: str, kind: processor.Processor | None = None) -> dict[str, Any]:
    """Precision -> "speed" (times float32's, text to vector) and "error" beside float32's vectors,
    each with its source, or None where it was not measured.

    Args:
        family: a family's name.
        kind: the processor, by default this one.
    """
    table = json.loads(FILE.read_text("utf-8"))
    kind = kind or processor.here()
    # Not of weaker kinds: theirs say nothing of what a stronger one gains.
    keys = (kind.name, f"{kind.vendor}, {kind.isa}", kind.isa)
    entries: dict[str, Any] = table["speed"]
    speeds: dict[str, Any] = next((entries[key] for key in keys if key in entries), {})
    errors = table["error"].get(family, {})
    return {name: {"speed": _of(speeds, name), "error": _of(errors, name)} for name in PRECISIONS}


def _of(measured: Mapping[str, Any], name: str) -> dict[str, Any] | None:
    if name not in measured:
        return None
    return {"source": measured["source"], **measured[name]}


def lines(family: str, facts: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """(what, words) of what `known` gave."""
    for name, option in PRECISIONS.items():
        speed, error = facts[name]["speed"], facts[name]["error"]
        faster = (
            f"x{speed['times']:.2f} float32's speed ({speed['source']})"
            if speed
            else "speed not measured on such a processor"
        )
        off = (
            f"cosine to float32's vectors {error['cosine_mean']:.5f}, worst "
            f"{error['cosine_worst']:.4f}, the same nearest text for {error['top1']:.1%} "
            f"({error['source']})"
            if error
            else f"error not measured for {family}"
        )
        yield name, f"{option}: {faster}"
        yield "", off
