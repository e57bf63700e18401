"""Small published-like checkpoints as SentenceTransformers, each beside an accelerated copy."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest

pytest.importorskip("sentence_transformers")

from pyenc.integrations.borrowed import batches
from pyenc.integrations.sentence_transformers import accelerate, modules
from tests.integrations.sentence_transformers.models import NAMES, loaded


@pytest.fixture(autouse=True)
def _whatever_the_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """The models here are so small that all their batches would be left to their own code."""
    for name in ("SMALL", "SMALL_PACKED"):
        monkeypatch.setattr(batches, name, 0)


@pytest.fixture(scope="module", params=NAMES)
def pair(request: pytest.FixtureRequest) -> Iterator[tuple[Any, Any]]:
    """(plain, accelerated), float32, to be left as they are."""
    plain = loaded(request.param)
    return plain, accelerate(copy.deepcopy(plain))


@pytest.fixture
def bert() -> Any:
    """A plain one, to be done with as one likes."""
    return loaded("bert_mean_h4")


@pytest.fixture
def packed(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The encoders that computed packed states, in their order."""
    calls: list[Any] = []
    states = modules.packed_states

    def kept(encoder: Any, tokens: Any) -> Any:
        calls.append(encoder)
        return states(encoder, tokens)

    monkeypatch.setattr(modules, "packed_states", kept)
    return calls


@pytest.fixture
def pooled(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Shapes of the logits that SpladePooling's own code is given."""
    from sentence_transformers.sparse_encoder.modules import SpladePooling

    shapes: list[tuple[int, ...]] = []
    plain = SpladePooling.forward

    def forward(self: Any, features: dict[str, Any]) -> dict[str, Any]:
        shape = tuple(features["token_embeddings"].shape)
        # Of another length it would make them as many as there are places, padding and all.
        assert features["attention_mask"].shape == shape[:2]
        shapes.append(shape)
        return plain(self, features)

    monkeypatch.setattr(SpladePooling, "forward", forward)
    return shapes
