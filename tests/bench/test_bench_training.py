"""`bench/training.py`: its programs take the same step, and one that does not is told."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

from bench import training
from bench.peers import torch_training
from pyenc.models import Encoder
from tests.models.test_encoder import ABSOLUTE, ALIBI

LENGTHS = (7, 1, 19)

CONFIGS = {"alibi": ALIBI, "absolute": dataclasses.replace(ABSOLUTE, activation="gelu")}


def made(name: str) -> dict[str, training.Step]:
    torch.manual_seed(1)
    encoder = Encoder(CONFIGS[name])
    rows = [torch.randint(0, 50, (n,)) for n in LENGTHS]
    return training.programs(encoder, rows, torch.randn(3, 24), ["compiled"])


@pytest.mark.parametrize("name", CONFIGS)
def test_the_same_step(name: str) -> None:
    steps = made(name)
    assert list(steps) == ["torch", "pyenc"]
    assert training.disagreements(steps) == []


@pytest.mark.parametrize("fault", ["answers", "gradients"])
@pytest.mark.parametrize("name", CONFIGS)
def test_another_step_is_told(name: str, fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    attention = torch_training._attention

    def other(module: Any, x: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        found = attention(module, x, bias)
        return found * 1.1 if fault == "answers" else found.detach()

    monkeypatch.setattr(torch_training, "_attention", other)
    (line,) = training.disagreements(made(name))
    assert line.startswith("torch: losses ")


def test_profile() -> None:
    # All rows: which are the longest is for this machine to say.
    shares = training.profile(made("alibi")["pyenc"], rows=10_000)
    assert any("mm" in op for op, _, _ in shares)
    assert sum(share for _, share, _ in shares) == pytest.approx(1)
    assert shares == sorted(shares, key=lambda each: -each[1])
