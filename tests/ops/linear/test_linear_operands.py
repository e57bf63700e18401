"""Operands of oneDNN's products however they lie, and who may ask for its verdict first."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

from pyenc.ops import linear
from pyenc.ops.linear import int8
from pyenc.ops.linear import onednn as linear_onednn
from tests.ops.linear.linear_support import DTYPES, check, layer, onednn, pin

pytestmark = onednn

Lying = Callable[[Tensor], Tensor]
LYING: dict[str, Lying] = {
    "as it is": lambda t: t,
    "every other": lambda t: torch.stack([t, torch.full_like(t, 9)], -1).flatten(-2)[..., ::2],
    "in wider rows": lambda t: torch.cat([t, t + 1, t], -1)[..., t.shape[-1] : 2 * t.shape[-1]],
    "one for all": lambda t: t[..., :1].expand_as(t),
    "turned": lambda t: t.t().contiguous().t(),
    "turned, in wider rows": lambda t: torch.cat([t, t]).t().contiguous().t()[: len(t)],
    "every other row": lambda t: torch.stack([t, t + 1], 1).flatten(0, 1)[::2],
    "one row for all": lambda t: t[:1].expand_as(t),
}
OF_ROWS = ("turned", "turned, in wider rows", "every other row", "one row for all")
M, C, N = 70, 66, 130


@pytest.mark.parametrize("lying", [name for name in LYING if name not in OF_ROWS])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_bias_that_does_not_lie_dense(lying: str, dtype: torch.dtype) -> None:
    if reason := linear_onednn.why_not(dtype):
        pytest.skip(reason)
    weight, bias = layer(C, N, dtype=dtype)
    x, bias = torch.randn(M, C).to(dtype), LYING[lying](bias.detach())
    for given, activation in itertools.product((weight, weight * 2), (None, "gelu", "silu")):
        check(
            linear(x, given, bias, activation, backend="onednn").detach(), x, given, bias,
            activation=activation,
        )  # fmt: skip
        with torch.no_grad():
            check(
                linear(x, given, bias, activation, backend="onednn"), x, given, bias,
                activation=activation,
            )  # fmt: skip


class Reached(list[bool]):
    """Of each product that oneDNN made: whether its weight lay so that it is quick."""


@pytest.fixture
def reached(monkeypatch: pytest.MonkeyPatch) -> Reached:
    noted, plain = Reached(), linear_onednn._op

    def noting(x: Tensor, weight: Tensor, *rest: Any) -> Tensor:
        noted.append(weight.layout != torch.strided or linear_onednn.is_dense(weight))
        assert rest[0] is None or rest[0].is_contiguous()
        return plain(x, weight, *rest)

    linear_onednn.why_not(torch.float32)
    monkeypatch.setattr(linear_onednn, "_op", noting)
    return noted


@pytest.mark.parametrize("of_gradient", LYING)
@pytest.mark.parametrize("of_weight", LYING)
@pytest.mark.parametrize("of_x", LYING)
def test_no_product_goes_through_plain_loops(
    of_x: str, of_weight: str, of_gradient: str, reached: Reached
) -> None:
    """They take a thousand times as long, which no test here would notice otherwise."""
    x = LYING[of_x](torch.randn(M, C)).requires_grad_()
    weight = LYING[of_weight](torch.randn(N, C)).requires_grad_()
    g = LYING[of_gradient](torch.randn(M, N))
    found = torch.autograd.grad(linear(x, weight, backend="onednn"), [x, weight], g)
    exact = g.double() @ weight.double(), g.double().t() @ x.double()
    for one, other in zip(found, exact, strict=True):
        torch.testing.assert_close(one.double(), other, rtol=1e-4, atol=1e-4)
    with torch.no_grad():
        check(linear(x, weight, backend="onednn"), x, weight, None)
    assert len(reached) == 4
    assert all(reached)


def test_a_sums_gradient_is_one_number_for_all(reached: Reached) -> None:
    weight, bias = layer(C, 4 * C)
    linear(torch.randn(M, C), weight, bias, backend="onednn").sum().backward()
    linear(torch.randn(M, C), weight, bias, backend="onednn").sum(1).square().sum().backward()
    assert len(reached) == 4
    assert all(reached)


@pytest.mark.parametrize("lying", LYING)
def test_eight_bits_however_they_lie(lying: str) -> None:
    weight, scale = int8.quantize_weight(torch.randn(N, C))
    x, bias, lie = torch.randn(M, C), torch.randn(N), LYING[lying]
    flat = (lambda t: t) if lying in OF_ROWS else lie
    given = lie(x), lie(weight), flat(scale), flat(bias)
    for backend in ("onednn", "torch"):
        if backend == "onednn" and int8.why_not() is not None:
            continue
        got = int8.int8_linear(*given, "gelu", backend=backend)
        dense = int8.int8_linear(*(t.contiguous() for t in given), "gelu", backend=backend)
        assert torch.equal(got, dense)


def in_a_trace(x: Tensor, weight: Tensor) -> None:
    weight = weight.detach()

    def asking(x: Tensor) -> Tensor:
        linear_onednn.why_not(x.dtype)
        return linear(x, weight)

    torch.jit.trace(asking, (x,), check_trace=False)


def in_fx(x: Tensor, weight: Tensor) -> None:
    graph = make_fx(lambda x: linear(x, weight))(x)
    assert not any("sin" in str(node.target) for node in graph.graph.nodes), "the probe is in it"


def among_fake_tensors(x: Tensor, weight: Tensor) -> None:
    with FakeTensorMode(allow_non_fake_inputs=True):
        linear(x, weight)


@pytest.mark.parametrize("asker", [in_a_trace, in_fx, among_fake_tensors])
def test_whoever_asks_first(
    asker: Callable[[Tensor, Tensor], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    pin(monkeypatch, {"onednn": 2.0, "unpacked": 2.0}, torch.float32)
    tried: dict[Any, str | None] = {}
    monkeypatch.setattr(linear_onednn, "_tried", tried)
    weight, _ = layer(C, N)
    asker(torch.randn(M, C), weight)
    assert list(tried.values()) == [None]
    assert linear_onednn.why_not(torch.float32) is None


@pytest.mark.parametrize("asker", [in_a_trace, in_fx, among_fake_tensors])
def test_whoever_asks_first_for_eight_bits(
    asker: Callable[[Tensor, Tensor], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    known, tried = int8.why_not(), []  # type: ignore[var-annotated]
    monkeypatch.setattr(int8, "_tried", tried)
    weight, scale = int8.quantize_weight(torch.randn(N, C))

    def product(x: Tensor, _: Tensor, *rest: Any) -> Tensor:
        return int8.int8_linear(x, weight, scale)

    monkeypatch.setitem(globals(), "linear", product)
    asker(torch.randn(M, C), weight)
    assert tried == [known]


def test_a_verdict_is_of_the_precision_it_was_asked_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where torch may multiply float32 by bfloat16, oneDNN does on some processors: that is what
    was asked for, and no fault of later."""
    plain, asked = linear_onednn._op, "bf16"

    def rounding(x: Tensor, *rest: Any) -> Tensor:
        return plain(x.bfloat16().float() if rounds else x, *rest)

    monkeypatch.setattr(linear_onednn, "_op", rounding)
    monkeypatch.setattr(linear_onednn, "_tried", {})
    monkeypatch.setattr(linear_onednn, "precision", lambda: asked)
    rounds = True
    assert linear_onednn.why_not(torch.float32) is None
    asked, rounds = "ieee", False
    assert linear_onednn.why_not(torch.float32) is None
    linear_onednn._tried.clear()
    rounds = True
    assert "answers are wrong here" in str(linear_onednn.why_not(torch.float32))


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(256, 256)

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.inner.weight, self.inner.bias, "gelu")


def test_a_trace_holds_torchs_own_ops(monkeypatch: pytest.MonkeyPatch) -> None:
    """With gradients and without: torch takes it again without, and compares."""
    pin(monkeypatch, {"onednn": 2.0, "unpacked": 2.0}, torch.float32)
    x, module = torch.randn(300, 256), Layer()
    traced = torch.jit.trace(module, (x,))
    torch.testing.assert_close(traced(x), F.gelu(module.inner(x)))
    assert "pyenc::" not in str(traced.inlined_graph)
