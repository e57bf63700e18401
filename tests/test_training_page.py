"""docs/training.md: its sections that say `<!-- run -->` are run, from top to bottom in one
namespace. The others have nothing to run, start processes or compile, which tests/models does, or
need sentence-transformers (tests/integrations/page)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.conftest import GOLDEN
from tests.pages import DOCS, run_marked

PAGE = DOCS / "training.md"

ELSEWHERE = {"Mixtures of experts", "torch.compile", "Several processes", "sentence-transformers"}


def test_it_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, Any] = {"__name__": "page", "MODEL": str(GOLDEN / "bert_mean_h4")}
    assert {section.title for section in run_marked(PAGE, namespace)} == ELSEWHERE
    assert namespace["losses"][-1] < 0.7 * namespace["losses"][0]
    assert (tmp_path / "trained" / "model.safetensors").is_file()
    assert namespace["losses"][-1] != namespace["loss"]
