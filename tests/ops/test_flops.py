"""torch's counter of operations knows the registered ops, and counts them as torch's own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

import pyenc.ops.flops  # noqa: F401
from pyenc.ops import (
    ALiBi,
    DistanceRows,
    attention,
    disentangled_attention,
    experts,
    extension,
    linear,
)
from pyenc.ops.linear import int8
from tests.ops.linear.linear_support import layer, pin

H, D = 3, 16
LENGTHS = [3, 0, 40, 7]
PAIRS = sum(n * n for n in LENGTHS)


def counted(run: Callable[[], Any]) -> int:
    with FlopCounterMode(display=False) as counter:
        run()
    return int(counter.get_total_flops())


@pytest.mark.parametrize("gains", [{}, {"onednn": 2.0}, {"onednn": 2.0, "unpacked": 2.0}], ids=str)
@pytest.mark.parametrize("activation", [None, "gelu"])
def test_linear(
    gains: dict[str, float | bool], activation: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    pin(monkeypatch, gains, torch.float32)
    x, (weight, bias) = torch.randn(2, 150, 256, requires_grad=True), layer(256, 256)
    once = 2 * 300 * 256 * 256
    assert counted(lambda: F.linear(x, weight, bias).sum().backward()) == 3 * once
    assert counted(lambda: linear(x, weight, bias, activation).sum().backward()) == 3 * once
    with torch.no_grad():
        assert counted(lambda: linear(x, weight, bias, activation)) == once
        assert counted(lambda: linear(x, weight * 2, bias, activation)) == once


@pytest.mark.skipif(extension.missing() is not None, reason=str(extension.missing()))
@pytest.mark.parametrize("activation", [None, "gelu"])
def test_few_rows(activation: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    pin(monkeypatch, {"few_rows": 2.0}, torch.float32)
    x, (weight, bias) = torch.randn(2, 3, 256), layer(256, 256)
    once = 2 * 6 * 256 * 256
    with torch.no_grad():
        assert counted(lambda: linear(x, weight, bias, activation)) == once
        assert counted(lambda: linear(x, weight, None, activation, backend="few_rows")) == once


def test_halves_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    pin(monkeypatch, {"wide": 2.0}, torch.float16)
    x, (weight, bias) = torch.randn(512, 256).half(), layer(256, 256, dtype=torch.float16)
    with torch.no_grad():
        assert counted(lambda: linear(x, weight, bias, "gelu")) == 2 * 512 * 256 * 256


def test_experts() -> None:
    """Of those that a token goes through; the registered op, which graphs have, as well."""
    x, up, down = (torch.randn(s, requires_grad=True) for s in ((7, 24), (5, 40, 24), (5, 40, 24)))
    chosen, weights = torch.randint(5, (7, 2)), torch.rand(7, 2, requires_grad=True)
    once = 2 * 2 * 7 * 2 * 24 * 40
    given = x, chosen, weights, up, down
    assert counted(lambda: experts(*given)) == once
    assert counted(lambda: experts(*given).sum().backward()) == 3 * once
    op = torch.ops.pyenc.experts
    assert counted(lambda: op(*given, "gelu", "auto")) == once
    assert counted(lambda: op(*given, "gelu", "auto").sum().backward()) == once + once // 2 * 5


def test_a_gated_product_and_its_being_made_once_more() -> None:
    with FakeTensorMode():
        x, weight, grad = torch.empty(5, 7, 24), torch.empty(2 * 40, 24), torch.empty(35, 40)
        call = x, weight, None, "gelu", False
        forward = counted(lambda: torch.ops.pyenc.gated_linear(*call))
        backward = counted(lambda: torch.ops.pyenc.gated_linear_backward(grad, *call))
    assert forward == backward == 2 * 35 * 24 * 80


def test_eight_bits() -> None:
    weight, scale = int8.quantize_weight(torch.randn(40, 24))
    x = torch.randn(5, 7, 24)
    assert counted(lambda: int8.int8_linear(x, weight, scale)) == 2 * 35 * 24 * 40


@pytest.mark.parametrize("backend", ["cpu", "torch"])
@pytest.mark.parametrize("learned", [False, True])
def test_attention(backend: str, learned: bool) -> None:
    """All pairs of a sequence, twice a multiplication of two products; five in the backward."""
    q, k, v = torch.randn(3, sum(LENGTHS), H, D, requires_grad=True)
    cu_seqlens = torch.tensor([0, *LENGTHS]).cumsum(0)
    slopes = torch.rand(H, requires_grad=learned)

    def run() -> Tensor:
        out = attention(q, k, v, cu_seqlens, bias=ALiBi(slopes), backend=backend)
        assert isinstance(out, Tensor)
        return out

    one = 2 * H * D * PAIRS
    with torch.no_grad():
        assert counted(run) == 2 * one
    assert counted(lambda: run().sum().backward()) == 7 * one


@pytest.mark.parametrize("backend", ["cpu", "torch"])
@pytest.mark.parametrize("both", [False, True])
def test_disentangled_attention(backend: str, both: bool) -> None:
    if backend == "cpu" and extension.load() is None:
        pytest.skip(extension.why_missing())
    q, k, v = torch.randn(3, sum(LENGTHS), H, D, requires_grad=True)
    keys, queries = torch.randn(2, 8, H, D, requires_grad=True)
    cu_seqlens = torch.tensor([0, *LENGTHS]).cumsum(0)

    def run() -> Tensor:
        return disentangled_attention(
            q, k, v, cu_seqlens, position_keys=keys if both else None, position_queries=queries,
            rows=DistanceRows(4, 4, 16), backend=backend,
        )  # fmt: skip

    one, table = 2 * H * D * PAIRS, 2 * H * D * sum(LENGTHS) * 8 * (1 + both)
    with torch.no_grad():
        assert counted(run) == 2 * one + table
    assert counted(lambda: run().sum().backward()) == 7 * one + 4 * table


def test_lengths_without_values_count_as_equal_ones() -> None:
    with FakeTensorMode():
        q = torch.empty(60, H, D)
        cu_seqlens = torch.empty(4, dtype=torch.int32)
        call = ("none", None, 0, None, 0.25, -1, -1, 0.0, None, 0.0, False, False, "torch")
        flops = counted(lambda: torch.ops.pyenc.attention(q, q, q, cu_seqlens, *call))
    assert flops == 4 * H * D * 3 * 20 * 20
