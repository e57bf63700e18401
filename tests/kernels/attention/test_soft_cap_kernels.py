"""Scores under a soft cap by the Triton kernels, against the dense float64 oracle."""

from __future__ import annotations

from typing import Any

import pytest
import torch

pytest.importorskip("triton")

from pyenc.ops import SoftCap, attention, check_score_bias
from tests.kernels.attention.attention_case import Case


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"window": (-1, 0)},  # as in Gemma 2: causal,
        {"window": (20, 0), "holes": True},  # and with a window
        {"dtype": torch.bfloat16, "window": (-1, 0)},
        {"dtype": torch.float16},
        {"std": 60.0},  # nearly every score at its cap
        {"std": 1e-3},
        {"scale": -0.3},
    ],
    ids=str,
)
def test_against_the_oracle(given: dict[str, Any], device: str) -> None:
    Case([70, 1, 0, 33], "cap", device, heads=3, **given).check()


def test_it_says_what_it_does(device: str) -> None:
    caps = torch.tensor([50.0, 0.7, 3.0], requires_grad=True)
    said = check_score_bias(SoftCap(caps), device=device)
    assert "score, slope, parameter (gradients of 1 tensors) agree" in said


def test_keys_that_heads_share(device: str) -> None:
    q = torch.randn(40, 4, 16, device=device)
    k, v = torch.randn(2, 40, 2, 16, device=device)
    given = {"bias": SoftCap(torch.full((4,), 2.0, device=device)), "window": (9, 0)}
    bounds = torch.tensor([0, 13, 40], device=device)
    found, wanted = (
        attention(q, k, v, bounds, **given, backend=backend) for backend in ("triton", "reference")
    )
    assert isinstance(found, torch.Tensor)
    assert isinstance(wanted, torch.Tensor)
    assert (found - wanted).abs().max() < (1e-2 if device == "cuda" else 1e-5)
