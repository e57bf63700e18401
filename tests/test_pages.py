"""The pages of docs/: how they are read, where their links lead, and docs/encoding.md, run."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pyenc
from tests.conftest import GOLDEN
from tests.pages import DOCS, Section, run_marked, sections


def test_sections_are_read() -> None:
    page = (
        "# T\n\n## A b\n<!-- needs: torch, x -->\n\n```python\n1 / 1\n```\n\n## C\n<!-- run -->\n"
    )
    first, second = sections(page)
    assert first == Section("A b", False, ("torch", "x"), ((6, "1 / 1\n"),))
    assert second == Section("C", True, (), ())


def test_encoding_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    texts = ["The quick brown fox.", "Jumps over the lazy dog, and over another."]
    namespace: dict[str, Any] = {
        "__name__": "page", "MODEL": str(GOLDEN / "bert_mean_h4"),
        "texts": texts, "questions": texts[:1],
    }  # fmt: skip
    left = {section.title for section in run_marked(DOCS / "encoding.md", namespace)}
    assert left == {"From the command line", "Which kernels serve", "Forked processes"}
    assert namespace["scores"].shape == (1, 2)
    assert namespace["out"].shape == (1500, 12, 64)
    near = namespace["small"].encode(texts) - pyenc.load(str(GOLDEN / "bert_mean_h4")).encode(texts)
    assert 0 < np.abs(near).max() < 0.1


@pytest.mark.parametrize(
    "page",
    [
        page
        for folder in ("docs", "bench", ".")
        for page in sorted((DOCS.parent / folder).glob("*.md"))
    ],
    ids=lambda p: f"{p.parent.name}/{p.name}",
)
def test_links_lead_somewhere(page: Path) -> None:
    """To files of this repository, and to headings of its pages."""
    text = page.read_text("utf-8")
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if "://" in target:
            continue
        name, _, heading = target.partition("#")
        file = (page.parent / name).resolve() if name else page
        assert file.exists(), f"{page.name} leads to {target}"
        if heading:
            assert heading in _anchors(file.read_text("utf-8")), f"{page.name} leads to {target}"


def _anchors(page: str) -> set[str]:
    """What headings are called in links: small letters, digits, hyphens and underscores."""
    headings = re.findall(r"^#+ (.*)$", page, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", h.lower()).replace(" ", "-") for h in headings}
