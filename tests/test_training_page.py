"""docs/training.md: its sections that say `<!-- run -->` are run, from top to bottom in one
namespace. The others have nothing to run, start processes or compile, which tests/models does, or
need sentence-transformers (tests/integrations/page)."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import GOLDEN

PAGE = Path(__file__).resolve().parents[1] / "docs" / "training.md"

ELSEWHERE = {"Mixtures of experts", "torch.compile", "Several processes", "sentence-transformers"}


def test_it_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    page = PAGE.read_text("utf-8")
    namespace: dict[str, Any] = {"__name__": "page", "MODEL": str(GOLDEN / "bert_mean_h4")}
    left = set()
    for part in re.finditer(r"^## (.*?)\n.*?(?=^## |\Z)", page, re.MULTILINE | re.DOTALL):
        if "<!-- run -->" not in part[0]:
            left.add(part[1])
            continue
        for block in re.finditer(r"^```python\n(.*?)^```$", part[0], re.MULTILINE | re.DOTALL):
            # Empty lines before it: a traceback then names the line of the page.
            line = page[: part.start() + block.start(1)].count("\n")
            exec(compile("\n" * line + block[1], str(PAGE), "exec"), namespace)
    assert left == ELSEWHERE
    assert namespace["losses"][-1] < 0.7 * namespace["losses"][0]
    assert (tmp_path / "trained" / "model.safetensors").is_file()
    assert namespace["losses"][-1] != namespace["loss"]
