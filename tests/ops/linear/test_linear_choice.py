"""Which way `linear` takes: what was measured, what was asked for, what fails."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pyenc.errors import BackendError
from pyenc.ops import linear
from pyenc.ops.backend import explain
from pyenc.ops.linear import backend_table
from pyenc.ops.linear import onednn as linear_onednn
from pyenc.ops.linear import packs as linear_packs
from pyenc.ops.linear import trial as linear_trial
from pyenc.ops.linear import wide as linear_wide
from tests.ops.linear.linear_support import check, faster, layer, onednn


@onednn
def test_nothing_is_measured_while_compiling(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object) -> float:
        raise AssertionError("measured")

    monkeypatch.setattr(linear_trial, "ratio", never)
    x, (weight, bias) = torch.randn(999, 384), layer(384, 384)
    compiled = torch.compile(lambda x: linear(x, weight, bias), fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        assert torch.equal(compiled(x), F.linear(x, weight, bias))
    assert linear_packs.held() == 0


@onednn
def test_the_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    x, (weight, bias) = torch.randn(700, 384), layer(384, 384)

    def serves(x: Tensor = x, weight: Tensor = weight) -> str:
        return explain(backend_table(x, weight, bias))["onednn"]

    assert serves() == "a gradient is needed"
    with torch.no_grad():
        faster(monkeypatch, 1.1)
        assert serves() == "measured 1.10x F.linear, needs 1.15x"
        faster(monkeypatch, 1.2)
        assert serves() == "serves"
        assert serves(x[:1]) == "the product is too small to gain"
        assert "no parameter" in serves(weight=weight * 2)
        linear(x[:1], weight, bias)
        assert linear_packs.held() == 0
        linear(x, weight, bias)
        assert linear_packs.held() == weight.numel() * 4
        with monkeypatch.context() as patch:
            patch.setattr(torch.backends.mkldnn, "enabled", False)
            assert serves() == "torch.backends.mkldnn is disabled"
        monkeypatch.setenv(linear_onednn.VARIABLE, "torch")
        assert serves() == "PYENC_LINEAR=torch"
        monkeypatch.setenv(linear_onednn.VARIABLE, "onednn")
        faster(monkeypatch, 0.1)
        assert serves(x[:1]) == "serves"
        monkeypatch.setenv(linear_onednn.VARIABLE, "mkl")
        with pytest.raises(BackendError, match="must be auto, onednn or torch, got 'mkl'"):
            serves()


@onednn
def test_the_measurement_is_short_and_made_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    ratio = linear_trial.ratio
    monkeypatch.setattr(linear_trial, "ratio", lambda *two: calls.append(1) or ratio(*two))
    state = torch.get_rng_state()
    answers = {linear_onednn.slower(torch.float32) for _ in range(5)}
    assert len(answers) == len(calls) == 1
    assert torch.equal(torch.get_rng_state(), state)
    assert linear_onednn._timed[torch.float32, ""] > 0


def test_the_ratio_is_the_cautious_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither half the rounds of the one disturbed nor one lucky round of the other count."""
    now = [0.0]

    def taking(*seconds: float) -> Callable[[], None]:
        left = itertools.cycle(seconds)
        return lambda: now.__setitem__(0, now[0] + next(left))

    monkeypatch.setattr(linear_trial.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(linear_trial, "_SECONDS", 1e9)
    assert linear_trial.ratio(taking(1, 9, 9), taking(1)) == 1
    assert linear_trial.ratio(taking(1), taking(1, 1, 0.1)) == 1
    assert linear_trial.ratio(taking(3), taking(2)) == 1.5


def broken(*_: object) -> Tensor:
    raise RuntimeError("no such processor\nstack")


@pytest.mark.parametrize(
    ("name", "instead", "says"),
    [
        ("pack", broken, "this torch or processor cannot: no such processor"),
        ("run", lambda x, packed, *_: x.new_full((5, 48), 3.0), "its answers are wrong here"),
        ("run", lambda x, packed, *_: x.new_full((5, 48), float("nan")), "answers are wrong"),
    ],
)
def test_where_the_private_op_fails_torch_serves(
    name: str, instead: Callable[..., Tensor], says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    faster(monkeypatch)
    monkeypatch.setattr(linear_onednn, "_tried", {})
    if name == "run":
        monkeypatch.setattr(linear_onednn, "pack", lambda weight: weight)
    monkeypatch.setattr(linear_onednn, name, instead)
    x, (weight, bias) = torch.randn(999, 384), layer(384, 384)
    with torch.no_grad():
        assert torch.equal(linear(x, weight, bias), F.linear(x, weight, bias))
        assert torch.equal(torch.ops.pyenc.linear(x, weight, bias, ""), F.linear(x, weight, bias))
        with pytest.raises(BackendError, match=says):
            linear(x, weight, bias, backend="onednn")


@pytest.mark.parametrize("dtype", linear_wide.DTYPES)
@pytest.mark.parametrize("activation", [None, "gelu", "relu"])
def test_halves_are_widened_where_that_is_faster(
    dtype: torch.dtype, activation: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, (weight, bias) = torch.randn(2, 1100, 96).to(dtype), layer(96, 200, dtype=dtype)
    widened = []
    plain = linear_wide.linear
    monkeypatch.setattr(linear_wide, "linear", lambda *a: widened.append(1) or plain(*a))
    for gain, times in ((1.1, 0), (1.2, 1)):
        monkeypatch.setattr(linear_wide, "_gains", {dtype: gain})
        with torch.no_grad():
            check(linear(x, weight, bias, activation), x, weight, bias, activation=activation)
        assert len(widened) == times
    linear(x, weight, bias)  # with a gradient
    with torch.no_grad():
        linear(x[0, :63], weight, bias)
        linear(x.float(), weight.float())
        with torch.autocast("cpu", torch.bfloat16):
            linear(x, weight, bias)
        monkeypatch.setenv(linear_onednn.VARIABLE, "torch")
        assert torch.equal(linear(x, weight, bias), F.linear(x, weight, bias))
    assert len(widened) == 1


def test_whether_widening_is_faster_is_measured_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(linear_wide, "_gains", {})
    monkeypatch.setattr(linear_trial, "ratio", lambda *two: asked.append(two) or 1.3)
    assert [linear_wide.faster(torch.bfloat16) for _ in range(3)] == [True] * 3
    assert not linear_wide.faster(torch.float32)
    assert len(asked) == 1
    for way in asked[0]:
        assert way().shape == (256, 512)
