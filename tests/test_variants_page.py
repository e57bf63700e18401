"""docs/attention-variants.md: its sections that say `<!-- run -->` are run, from top to bottom in
one namespace. The others need Triton, whose functions must stand in a file."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from pyenc.models import position
from tests.conftest import GOLDEN

PAGE = Path(__file__).resolve().parents[1] / "docs" / "attention-variants.md"


def test_it_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(position, "_variants", {})
    page = PAGE.read_text("utf-8")
    namespace: dict[str, Any] = {"__name__": "page", "MODEL": str(GOLDEN / "bert_mean_h4")}
    ran = 0
    for part in re.finditer(r"^## .*?\n(?=^## |\Z)", page, re.MULTILINE | re.DOTALL):
        if "<!-- run -->" not in part[0]:
            assert "triton" in part[0].lower()
            continue
        for block in re.finditer(r"^```python\n(.*?)^```$", part[0], re.MULTILINE | re.DOTALL):
            # Empty lines before it: a traceback then names the line of the page.
            line = page[: part.start() + block.start(1)].count("\n")
            exec(compile("\n" * line + block[1], str(PAGE), "exec"), namespace)
            ran += 1
    assert ran == 7
    assert namespace["hidden"].shape == (2, 50, 64)
    assert namespace["missing"] == ["position_bias.a", "position_bias.b"]
    assert namespace["unexpected"] == []
    assert namespace["losses"][-1] < 0.7 * namespace["losses"][0]
    assert namespace["again"].model.config == namespace["config"]
    assert namespace["vector"].shape == (namespace["again"].dim,)
