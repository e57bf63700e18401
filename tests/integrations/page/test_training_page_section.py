"""docs/training.md's section on sentence-transformers is run; the others are without it
(tests/test_training_page.py)."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("sentence_transformers")

import pyenc
from pyenc.integrations.borrowed import batches
from pyenc.integrations.sentence_transformers import modules
from tests.conftest import GOLDEN
from tests.pages import sections
from tests.test_training_page import PAGE


def test_it_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    (section,) = (s for s in sections(PAGE.read_text("utf-8")) if s.needs)
    for name in ("SMALL", "SMALL_PACKED"):
        monkeypatch.setattr(batches, name, 0)
    calls = []
    states = modules.packed_states
    monkeypatch.setattr(modules, "packed_states", lambda *a: calls.append(1) or states(*a))
    namespace: dict[str, Any] = {
        "MODEL": str(GOLDEN / "bert_mean_h4"), "pyenc": pyenc,
        "questions": ["a question", "another", "and a third"],
        "answers": ["one", "two", "three " * 9],
    }  # fmt: skip
    section.run(PAGE, namespace)
    assert len(calls) == 8
    trained = namespace["trained"]
    assert all(p.grad is not None for n, p in trained.named_parameters() if "pooler" not in n)
