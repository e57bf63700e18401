"""docs/attention-variants.md: its sections that say `<!-- run -->` are run, from top to bottom in
one namespace. The others need Triton, whose functions must stand in a file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pyenc.models import position
from tests.conftest import GOLDEN
from tests.pages import DOCS, run_marked

PAGE = DOCS / "attention-variants.md"


def test_it_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(position, "_variants", {})
    namespace: dict[str, Any] = {"__name__": "page", "MODEL": str(GOLDEN / "bert_mean_h4")}
    assert [section.title[:2] for section in run_marked(PAGE, namespace)] == ["3.", "4.", "5."]
    assert namespace["hidden"].shape == (2, 50, 64)
    assert namespace["missing"] == ["position_bias.a", "position_bias.b"]
    assert namespace["unexpected"] == []
    assert namespace["losses"][-1] < 0.7 * namespace["losses"][0]
    assert namespace["again"].model.config == namespace["config"]
    assert namespace["vector"].shape == (namespace["again"].dim,)
