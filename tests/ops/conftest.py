"""What no test of an op may leave to the next."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from pyenc.ops.linear import onednn as linear_onednn
from pyenc.ops.linear import packs as linear_packs


@pytest.fixture(autouse=True)
def nothing_held(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Each test starts without packs and wishes of the environment."""
    monkeypatch.delenv(linear_onednn.VARIABLE, raising=False)
    linear_packs.forget_all()
    yield
    linear_packs.forget_all()
