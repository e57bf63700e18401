"""What tests of a bias by distance share."""

from __future__ import annotations

import pytest

from pyenc.ops.attention import cpu_arrays


@pytest.fixture
def bounds_of_short_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bounds are looked for in the short texts of tests too, which they are not worth."""
    monkeypatch.setattr(cpu_arrays, "WORTH_FALLS", 1)
