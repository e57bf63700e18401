"""The register-only peak: that it is measured, and refuses what it cannot."""

from __future__ import annotations

import pytest

from pyenc.ops import extension


@pytest.fixture
def module() -> object:
    loaded = extension.load()
    if loaded is None:
        pytest.skip(extension.why_missing())
    return loaded


def test_it_is_measured(module: object) -> None:
    rate = module.fma_peak("float32", threads=1, seconds=0.01)  # type: ignore[attr-defined]
    assert rate is None or 1e8 < rate < 1e13
    rate = module.fma_peak("bfloat16", threads=1, seconds=0.01)  # type: ignore[attr-defined]
    assert rate is None or 1e9 < rate < 1e13


@pytest.mark.parametrize(
    ("kind", "threads", "seconds"),
    [("int8", 1, 0.01), ("float32", 0, 0.01), ("float32", 1, 0.0), ("float32", 1, float("nan"))],
)
def test_it_refuses(module: object, kind: str, threads: int, seconds: float) -> None:
    with pytest.raises(ValueError, match="fma_peak"):
        module.fma_peak(kind, threads=threads, seconds=seconds)  # type: ignore[attr-defined]
