"""Scores under a soft cap by the Triton kernels, against the dense float64 oracle."""

from __future__ import annotations

from typing import Any

import pytest
import torch

pytest.importorskip("triton")

from pyenc.ops import SoftCap, attention, check_score_bias
from tests.kernels.attention.attention_case import Case
from tests.seeds import seed


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"window": (-1, 0)},  # as in Gemma 2: causal,
        {"window": (20, 0), "holes": True},  # and with a window
        {"dtype": torch.bfloat16, "window": (-1, 0)},
        {"dtype": torch.float16},
        {"std": 60.0, "heads": 3},  # nearly every score at its cap, where that is low
        {"std": 1e-3},
        {"scale": -0.3},
    ],
    ids=str,
)
def test_against_the_oracle(given: dict[str, Any], device: str) -> None:
    Case([70, 1, 0, 33], "cap", device, **{"heads": 5, **given}).check()


@pytest.mark.parametrize("cap", [0.7, 50.0, 1e4, 1e7])
def test_it_says_what_it_does(cap: float, device: str) -> None:
    caps = torch.tensor([cap, 3.0], requires_grad=True)
    said = check_score_bias(SoftCap(caps), device=device)
    assert "score, slope, parameter (gradients of 1 tensors) agree" in said


@pytest.mark.parametrize("std", [1e-3, 1.0])
@pytest.mark.parametrize("cap", [4.0, 50.0, 1e4, 1e7])
def test_a_cap_far_above_the_scores(cap: float, std: float, device: str) -> None:
    """Nothing is lost of the scores in the cap's own rounding, nor of its gradient."""
    torch.manual_seed(seed(1))
    q, k, v = (torch.randn(37, 2, 16, dtype=torch.float64) for _ in range(3))
    bounds = torch.tensor([0, 37])

    def run(dtype: torch.dtype, backend: str, where: str) -> list[torch.Tensor]:
        given = [x.to(where, dtype).requires_grad_() for x in (std * q, k, v)]
        wide = torch.full((2,), cap, dtype=dtype, device=where, requires_grad=True)
        out = attention(*given, bounds.to(where), bias=SoftCap(wide), backend=backend)
        assert isinstance(out, torch.Tensor)
        grads = torch.autograd.grad(out.square().sum(), [*given, wide])
        return [x.detach().double().cpu() for x in (out, *grads)]

    found, wanted = run(torch.float32, "triton", device), run(torch.float64, "reference", "cpu")
    for number, (a, b) in enumerate(zip(found, wanted, strict=True)):
        assert (a - b).abs().max() <= 2e-5 * b.abs().max(), number


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
    assert (found - wanted).abs().max() < 1e-5  # a card's products of float32 are whole too
