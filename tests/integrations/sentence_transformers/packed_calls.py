"""Which encoders computed packed states: for tests that ask whether ours was run."""

from __future__ import annotations

from typing import Any

import pytest

from pyenc.integrations.sentence_transformers import modules


def watch_packed(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The encoders that computed packed states from here on, in their order."""
    calls: list[Any] = []
    states = modules.packed_states

    def kept(encoder: Any, tokens: Any) -> Any:
        calls.append(encoder)
        return states(encoder, tokens)

    monkeypatch.setattr(modules, "packed_states", kept)
    return calls
