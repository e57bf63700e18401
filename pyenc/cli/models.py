"""`pyenc models`: what is served and how far each was checked, as docs/checkpoints.md has it."""

from __future__ import annotations

import argparse
import json
import textwrap
from collections.abc import Iterator
from typing import Any

from ..loading.shipped import SHIPPED
from ..models.families import FAMILIES, own
from .streams import printing

WORDS = {
    "real weights": "**verified with its real weights**",
    "golden": "verified on small checkpoints of its original code",
    "unverified": "**unverified**",
    "ours": "**comes with pyenc, trained by us**",
}
"""What the page says of a status."""


def run(args: argparse.Namespace) -> int:
    """The command."""
    rows = table()
    with printing():
        if args.json:
            print(json.dumps(rows, indent=2, ensure_ascii=False))
        else:
            for line in markdown(rows) if args.markdown else _lines(rows):
                print(line)
    return 0


def table() -> list[dict[str, Any]]:
    """A row for what is checked together, by the names of the families."""
    published = [
        {
            "family": family.name,
            "checkpoints": row.names,
            "status": row.status,
            "limit": row.limit,
            "remark": row.remark,
        }
        for family in sorted(FAMILIES, key=lambda family: family.name.lower())
        for row in family.checkpoints
    ]
    ours = [
        {
            "family": own.FAMILY.name,
            "checkpoints": each.name,
            "status": "ours",
            "limit": each.limit,
            "remark": each.remark,
        }
        for each in SHIPPED
    ]
    return sorted([*published, *ours], key=lambda row: row["family"].lower())


def markdown(rows: list[dict[str, Any]]) -> Iterator[str]:
    """The table as docs/checkpoints.md has it."""
    yield "| family | checkpoints | status | tokens of a text |"
    yield "|---|---|---|---|"
    for row in rows:
        status = WORDS[row["status"]] + (f": {row['remark']}" if row["remark"] else "")
        yield f"| {row['family']} | {row['checkpoints']} | {status} | {row['limit']} |"


def _lines(rows: list[dict[str, Any]]) -> Iterator[str]:
    family = ""
    for row in rows:
        if row["family"] != family:
            family = row["family"]
            yield family
        yield from textwrap.wrap(
            row["checkpoints"], 96, initial_indent="  ", subsequent_indent="    "
        )
        for name in ("status", "limit", "remark"):
            if row[name]:
                yield from textwrap.wrap(
                    row[name], 96, initial_indent=f"      {name:8}", subsequent_indent=" " * 14
                )
