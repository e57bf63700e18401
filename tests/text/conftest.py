"""Encoders that tests of text share: they hold no state between calls."""

from __future__ import annotations

import pytest

import pyenc
from tests.conftest import GOLDEN


@pytest.fixture(scope="module")
def encoder() -> pyenc.TextEncoder:
    return pyenc.load(GOLDEN / "jina_geglu_h4")


@pytest.fixture(scope="module")
def bert() -> pyenc.TextEncoder:
    return pyenc.load(GOLDEN / "bert_mean_h4")
