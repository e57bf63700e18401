"""Pages of docs/ as what can be run: their sections, and the Python in them.

A section says below its heading that it is run, `<!-- run -->`, or which packages it needs for
that, `<!-- needs: a, b -->` (names as they are imported).
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, NamedTuple

DOCS = Path(__file__).resolve().parents[1] / "docs"


class Section(NamedTuple):
    title: str
    marked: bool
    needs: tuple[str, ...]
    blocks: tuple[tuple[int, str], ...]  # line in the page, source

    def run(self, page: Path, namespace: dict[str, Any]) -> None:
        """Its blocks, from top to bottom, in `namespace`."""
        for line, source in self.blocks:
            # Empty lines before it: a traceback then names the line of the page.
            exec(compile("\n" * line + source, str(page), "exec"), namespace)


def sections(page: str) -> list[Section]:
    """Those of a page's text, below headings of the second level."""
    found = []
    for part in re.finditer(r"^## (.*?)\n.*?(?=^## |\Z)", page, re.MULTILINE | re.DOTALL):
        needs = re.search(r"<!-- needs: (.*?) -->", part[0])
        blocks = tuple(
            (page[: part.start() + block.start(1)].count("\n"), block[1])
            for block in re.finditer(r"^```python\n(.*?)^```$", part[0], re.MULTILINE | re.DOTALL)
        )
        names = tuple(n.strip() for n in needs[1].split(",")) if needs else ()
        found.append(Section(part[1], "<!-- run -->" in part[0], names, blocks))
    return found


def run_marked(page: Path, namespace: dict[str, Any]) -> list[Section]:
    """Runs the sections that say so, in one namespace; those that don't."""
    left = []
    for section in sections(page.read_text("utf-8")):
        if section.marked:
            section.run(page, namespace)
        else:
            left.append(section)
    return left
