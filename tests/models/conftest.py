"""Encoders that tests of models share."""

from __future__ import annotations

import pytest
import torch

from pyenc.models import Encoder
from tests.models.shapes import SHAPES


@pytest.fixture(params=SHAPES.values(), ids=SHAPES)
def encoder(request: pytest.FixtureRequest) -> Encoder:
    encoder = Encoder(request.param).eval()
    for parameter in encoder.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return encoder
