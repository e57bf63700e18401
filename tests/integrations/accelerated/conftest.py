"""Whatever the size of a batch, pyenc serves it; and who did is written down."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("transformers")

from pyenc.integrations.borrowed import batches, whole


@pytest.fixture(autouse=True)
def _whatever_the_size(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SMALL", "SMALL_PACKED"):
        monkeypatch.setattr(batches, name, 0)


@pytest.fixture
def packed(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The encoders that computed packed states, in their order."""
    calls: list[Any] = []
    states = whole.packed_states

    def kept(encoder: Any, tokens: Any) -> Any:
        calls.append(encoder)
        return states(encoder, tokens)

    monkeypatch.setattr(whole, "packed_states", kept)
    return calls
