"""Mixed precision: under torch.autocast products are made in bfloat16, parameters stay float32."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor

from pyenc.models import Encoder, EncoderConfig
from pyenc.ops import extension
from tests.models.family_losses import EACH_FAMILY, case_of, gradients
from tests.models.shapes import ABSOLUTE, PRE_NORM, SHAPES
from tests.oracle import assert_right, naively

BACKENDS = (None, "torch", *(("cpu",) if extension.load() is not None else ()))


@pytest.mark.parametrize("name", EACH_FAMILY)
def test_gradients(name: str) -> None:
    """Off by no more than three times what the dense computation under autocast is off; float32,
    as the parameters are.

    Eight draws are judged as one: autocast rounds a bias's gradient to bfloat16, and in a single
    draw the naive one may lie nearer to the truth by luck than half of what that can tell apart.
    """
    found: dict[str | None, dict[str, list[Tensor]]] = {}
    for _ in range(8):
        case = case_of(name)
        encoder = case.checkpoint.encoder
        answers: dict[str | None, dict[str, Tensor]] = {}
        for backend in (*BACKENDS, "reference"):
            encoder.backend = backend
            with naively(), torch.autocast("cpu", torch.bfloat16):
                answers[backend] = gradients(encoder, case)
        if "lm_head.bias" in answers["reference"]:
            # The reference adds it in float32; naive code calls F.linear, whose logits are halves,
            # and so are their gradients, which it sums up.
            halves = case.share[-1].to(torch.bfloat16)
            answers["reference"]["lm_head.bias"] = halves.sum(0).float()
        answers["exact"] = gradients(copy.deepcopy(encoder).double(), case)
        for who, each in answers.items():
            for parameter, gradient in each.items():
                found.setdefault(who, {}).setdefault(parameter, []).append(gradient)
    for parameter, draws in found["exact"].items():
        oracle, naive = torch.stack(draws), torch.stack(found["reference"][parameter])
        for backend in BACKENDS:
            ours = torch.stack(found[backend][parameter])
            what = f"{backend}: {parameter}"
            assert ours.dtype == torch.float32
            assert_right(ours, naive, oracle, gradient=True, what=what)


@pytest.mark.parametrize("name", SHAPES)
def test_dtypes(name: str) -> None:
    """Sums and norms in float32, what comes of a product in bfloat16; nothing else changes."""
    torch.manual_seed(1)
    encoder = Encoder(SHAPES[name])
    ids, bounds = torch.arange(20) + 3, torch.tensor([0, 7, 20])
    seen: dict[str, set[torch.dtype]] = {}

    def keep(kind: str) -> None:
        for module in encoder.modules():
            if type(module).__name__ == kind:
                module.register_forward_hook(
                    lambda _, given, answer: seen.setdefault(kind, set()).add(
                        (answer[0] if isinstance(answer, tuple) else answer).dtype
                    )
                )

    for kind in ("Norm", "Attention", "FeedForward"):
        keep(kind)
    plain = encoder.forward_packed(ids, bounds)
    seen.clear()
    with torch.autocast("cpu", torch.bfloat16):
        hidden = encoder.forward_packed(ids, bounds)
    assert seen == {
        "Norm": {torch.float32},
        "Attention": {torch.bfloat16},
        "FeedForward": {torch.bfloat16},
    }
    assert hidden.dtype == torch.float32
    assert 0 < (hidden - plain).abs().max() < 0.1
    assert {p.dtype for p in encoder.parameters()} == {torch.float32}


@pytest.mark.parametrize("config", [ABSOLUTE, PRE_NORM], ids=["post-norm", "pre-norm"])
def test_a_curve(config: EncoderConfig) -> None:
    """A few steps from random weights: that of float32, nearly."""
    ids = torch.randint(0, 50, (60,))
    bounds = torch.tensor([0, 1, 9, 30, 60])
    target = torch.randn(60, 24)
    torch.manual_seed(3)
    first = Encoder(config)
    curves = []
    for enabled in (False, True):
        encoder = copy.deepcopy(first).train()
        optimizer = torch.optim.AdamW(encoder.parameters(), lr=1e-3)
        curve = []
        for _ in range(12):
            optimizer.zero_grad()
            with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
                loss = (encoder.forward_packed(ids, bounds) - target).square().mean()
            loss.backward()
            optimizer.step()
            curve.append(loss.detach())
        assert all(p.dtype == torch.float32 for p in encoder.parameters())
        curves.append(torch.stack(curve))
    plain, mixed = curves
    assert mixed[-1] < 0.97 * mixed[0]
    assert (mixed - plain).abs().max() < 0.05 * (plain[0] - plain[-1])
