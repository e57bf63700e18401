"""docs/drop-in.md: what it shows is run, a section at a time, in one namespace from top to bottom.

A section that needs packages says so below its heading, `<!-- needs: a, b -->` (names as they are
imported); where one is missing, the section is skipped, and which one is said.
"""

from __future__ import annotations

import importlib.util
import os
import re
from pathlib import Path
from typing import NamedTuple

import pytest

from examples import bundled

ROOT = Path(__file__).resolve().parents[3]
PAGE = ROOT / "docs" / "drop-in.md"


class Section(NamedTuple):
    title: str
    needs: tuple[str, ...]
    blocks: tuple[tuple[int, str], ...]  # line in the page, source


def sections(page: str) -> list[Section]:
    found = []
    line = page[: page.index("\n## ") + 1].count("\n")
    for part in re.split(r"^## ", page, flags=re.MULTILINE)[1:]:
        title = part.splitlines()[0]
        needs = re.search(r"<!-- needs: (.*?) -->", part)
        blocks = tuple(
            (line + part[: block.start(1)].count("\n"), block[1])
            for block in re.finditer(r"^```python\n(.*?)^```$", part, re.MULTILINE | re.DOTALL)
        )
        names = tuple(n.strip() for n in needs[1].split(",")) if needs else ()
        found.append(Section(title, names, blocks))
        line += part.count("\n")
    return found


SECTIONS = [s for s in sections(PAGE.read_text("utf-8")) if s.blocks]


@pytest.mark.slow
@pytest.mark.parametrize("section", SECTIONS, ids=lambda s: s.title)
def test_snippets_run(section: Section, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in section.needs:
        found = importlib.util.find_spec(name)
        # A folder of tests of that name is found too: it has no origin.
        if found is None or found.origin is None:
            pytest.skip(f"{name} is not installed (the extra `integrations` brings it)")
    monkeypatch.chdir(tmp_path)
    # Processes that a snippet starts find this tree wherever they are.
    paths = [str(ROOT), str(ROOT / "kernels"), os.environ.get("PYTHONPATH", "")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, paths)))
    # A cluster of its own, whoever else has one on this machine just now.
    monkeypatch.setenv("RAY_ADDRESS", "local")
    golden = ROOT / "tests" / "golden"
    namespace = {
        "__name__": "drop_in",
        "MODEL": str(bundled.minilm()),
        "JINA": str(golden / "jina_geglu_h4"),
    }
    if any("RERANKER" in source for _, source in section.blocks):
        from tests.integrations.sentence_transformers.headed import folder_of

        namespace["RERANKER"] = str(folder_of("SequenceClassification", "bert_mean_h4"))
    for line, source in section.blocks:
        # Empty lines before it: a traceback then names the line of the page.
        exec(compile("\n" * line + source, str(PAGE), "exec"), namespace)


def test_sections_are_read() -> None:
    page = "# T\n\n## A b\n<!-- needs: torch, x -->\n\n```python\n1 / 1\n```\n\n## C\ntext\n"
    first, second = sections(page)
    assert first == Section("A b", ("torch", "x"), ((6, "1 / 1\n"),))
    assert second == Section("C", (), ())
