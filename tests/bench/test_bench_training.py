"""`bench/training.py`: its programs take the same step, and one that does not is told."""

from __future__ import annotations

import dataclasses
import sys
from typing import Any

import pytest
import torch

from bench import training
from bench.peers import torch_training
from pyenc.models import Encoder
from tests.models.shapes import ABSOLUTE, ALIBI

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


@pytest.mark.parametrize("name", CONFIGS)
def test_other_rows_are_taken(name: str) -> None:
    """As by who is made with them."""
    torch.manual_seed(1)
    encoder = Encoder(CONFIGS[name])
    short, long = ([torch.randint(0, 50, (n,))] for n in (3, 17))
    for kind in (training.PackedVectors, torch_training.PaddedVectors):
        vectors = kind(encoder, short)
        assert not torch.equal(vectors(), kind(encoder, long)())
        vectors.take(long)
        assert torch.equal(vectors(), kind(encoder, long)())


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the peak is sampled")
@pytest.mark.parametrize("program", [training.OURS, "torch"])
def test_memory_of_a_step(program: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """At least the states, 24 channels each."""
    monkeypatch.setattr(training.subjects, "jina_small", lambda: Encoder(CONFIGS["alibi"]))
    monkeypatch.setattr(training.workloads, "token_ids", lambda n, vocabulary: [ids(*n)])
    assert training.taken(program, 4096)["mb"] > 4096 * 24 * 4 / 1e6


def ids(n: int) -> torch.Tensor:
    return torch.arange(n) % 50


@pytest.mark.parametrize("more", [1, 2])
def test_memory_that_is_not_linear_is_told(more: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def in_child(program: object, task: dict[str, Any], script: object) -> dict[str, Any]:
        return {"mb": 3.0 * task["tokens"] ** (more if task["program"] == training.OURS else 2)}

    monkeypatch.setattr(training.memory, "in_child", in_child)
    found, missed = training.memories([])
    assert [row["tokens"] for row in found[training.OURS]] == [1024, 2048, 4096, 8192]
    assert [row["tokens"] for row in found["torch"]] == [1024, 2048, 4096]
    assert len(missed) == (0 if more == 1 else 3)
    assert list(training.memories(["torch"])[0]) == [training.OURS]


def test_memory_that_is_not_measured_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training.memory, "in_child", lambda *_, **__: {"error": "killed"})
    _, missed = training.memories(["torch"])
    assert missed == [f"pyenc, {n:,} tokens: killed" for n in training.DOUBLED]


def test_profile() -> None:
    # All rows: which are the longest is for this machine to say.
    shares = training.profile(made("alibi")["pyenc"], rows=10_000)
    assert any("mm" in op for op, _, _ in shares)
    assert sum(share for _, share, _ in shares) == pytest.approx(1)
    assert shares == sorted(shares, key=lambda each: -each[1])
