"""docs/drop-in.md: what it shows is run, a section at a time, in one namespace from top to bottom.

Where a package is missing that a section needs, the section is skipped, and which one is said.
"""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import pytest

from examples import bundled
from tests.pages import DOCS, Section, sections

ROOT = Path(__file__).resolve().parents[3]
PAGE = DOCS / "drop-in.md"

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
    section.run(PAGE, namespace)
