"""float32 by parts of bfloat16: when it is taken, compiled or not, and that others are not changed.

What it computes: tests/csrc/linear/product_cases.py. Here the kernel is stood in for, so that the
tests say the same on every processor.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx

from pyenc.errors import BackendError
from pyenc.ops import linear
from pyenc.ops.backend import explain
from pyenc.ops.constant import constant_result
from pyenc.ops.linear import activated, backend_table, bf16x6
from pyenc.ops.linear import onednn as linear_onednn
from tests.ops.linear.linear_support import check, layer, pin

ROWS, C, F_OUT = 600, 512, 512  # large enough to gain


@pytest.fixture
def products(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """(M, N, K) of each product that is made by parts, on a processor that prefers them."""
    made: list[tuple[int, ...]] = []
    monkeypatch.delenv(linear_onednn.VARIABLE, raising=False)
    pin(monkeypatch, {"bf16x6": 2.0}, torch.float32)
    monkeypatch.setattr(bf16x6, "unavailable", constant_result(lambda: bf16x6._less_asked()))

    def by_parts(a: Tensor, b: Tensor, bias: Tensor | None, activation: str) -> Tensor:
        made.append((a.shape[0], b.shape[1], a.shape[1]))
        return bf16x6._by_torch(a, b, bias, activation)

    monkeypatch.setattr(bf16x6, "_by_parts", by_parts)
    return made


def test_the_choice(products: list[tuple[int, ...]], monkeypatch: pytest.MonkeyPatch) -> None:
    x, (weight, bias) = torch.randn(ROWS, C), layer(C, F_OUT)

    def serves(x: Tensor = x, weight: Tensor = weight, bias: Tensor | None = bias) -> str:
        return explain(backend_table(x, weight, bias))["bf16x6"]

    assert serves() == "serves"
    assert serves(weight=weight * 2) == "serves"  # no pack is kept of it
    for few in (x[:255], x[:511], x[:0]):
        assert serves(few) == "the product is too small to gain"
    assert serves(weight=weight[:63], bias=bias[:63]) == "the product is too small to gain"
    assert serves(x.double()) == "it is of float32"
    assert serves(x.to("meta")) == "the tensors are on meta"
    assert "plain tensors" in serves(x.as_subclass(type("Other", (Tensor,), {})))
    with torch.autocast("cpu", torch.bfloat16):
        assert serves() == "autocast makes another product"
        compiled = torch.compile(lambda x: linear(x, weight, bias), backend="aot_eager")
        assert compiled(x).dtype == linear(x, weight, bias).dtype == torch.bfloat16
    assert products == []
    pin(monkeypatch, {"bf16x6": 1.2, "onednn": 1.3})
    assert serves() == "choices.json prefers onednn to it (default)"
    pin(monkeypatch, {"bf16x6": 1.3, "onednn": 1.2})
    assert serves() == "serves"
    with torch.no_grad():
        assert explain(backend_table(x, weight, bias))["onednn"].startswith("choices.json prefers")
    pin(monkeypatch, {"bf16x6": 1.1})
    assert serves() == "choices.json has 1.10x F.linear, needs 1.15x (default)"
    monkeypatch.setenv(linear_onednn.VARIABLE, "bf16x6")
    assert serves() == serves(x[:1]) == "serves"
    with torch.no_grad():
        linear(x[:2], weight, bias)
    assert products == [(2, F_OUT, C)]
    monkeypatch.setenv(linear_onednn.VARIABLE, "torch")
    assert serves() == "PYENC_LINEAR=torch"


def test_who_asks_torch_for_less_gets_that(products: list[tuple[int, ...]]) -> None:
    x, (weight, bias) = torch.randn(ROWS, C), layer(C, F_OUT)
    for owner in (torch.backends, torch.backends.mkldnn, torch.backends.mkldnn.matmul):
        if not hasattr(owner, "fp32_precision"):
            pytest.skip("this torch has no such switch")
        before = owner.fp32_precision
        try:
            owner.fp32_precision = "ieee"
            assert bf16x6.why_not(x, weight, bias) is None
            owner.fp32_precision = "bf16"
            assert bf16x6.why_not(x) == "torch is asked for bf16 products of float32"
            linear(x, weight, bias)
        finally:
            owner.fp32_precision = before
    assert products == []


@pytest.mark.parametrize("activation", [None, "gelu", "silu"])
def test_the_same_compiled_or_not(
    products: list[tuple[int, ...]], activation: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where a call's size decides, or its numbers; and with gradients."""
    weight, bias = layer(C, F_OUT)

    def forward(x: Tensor) -> Tensor:
        return linear(x, weight, bias, activation)

    torch._dynamo.reset()
    compiled = torch.compile(forward, fullgraph=True, backend="aot_eager", dynamic=True)
    for rows in (ROWS, 511, 3, 2 * ROWS):
        x = torch.randn(rows, C)
        for grad in (False, True):
            found = []
            for way in (compiled, forward):
                products.clear()
                with torch.set_grad_enabled(grad):
                    y = way(x)
                    of = torch.autograd.grad(y.square().sum(), [weight, bias]) if grad else ()
                found.append((list(products), y, *of))
            assert found[0][0] == found[1][0], (rows, grad)
            for one, other in zip(found[0][1:], found[1][1:], strict=True):
                assert torch.equal(one, other), (rows, grad)
            by_parts = [(rows, F_OUT, C), (F_OUT, C, rows)][: 1 + grad]
            assert found[0][0] == (by_parts if rows >= ROWS else [])


def test_every_gradient_and_no_other(products: list[tuple[int, ...]]) -> None:
    x, (weight, bias) = torch.randn(2, ROWS // 2, C, requires_grad=True), layer(C, F_OUT)
    linear(x, weight, bias, "gelu").square().sum().backward()
    assert products == [(ROWS, F_OUT, C), (ROWS, C, F_OUT), (F_OUT, C, ROWS)]
    assert weight.grad is not None
    assert weight.grad.is_contiguous()
    products.clear()
    weight.requires_grad_(False)
    linear(x, weight, bias).sum().backward()
    assert products == [(ROWS, F_OUT, C), (ROWS, C, F_OUT)]
    with torch.no_grad():
        check(linear(x, weight, bias, "relu"), x, weight, bias, activation="relu")


def test_where_it_cannot_torchs_own_serves(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel says so of numbers; the answer is then the one without it, to the bit."""
    pin(monkeypatch, {"bf16x6": 2.0}, torch.float32)
    monkeypatch.setattr(bf16x6, "unavailable", lambda: None)
    monkeypatch.setattr(bf16x6, "_by_parts", lambda *_: None)
    x, (weight, bias) = torch.randn(ROWS, C), layer(C, F_OUT)
    with torch.no_grad():
        assert torch.equal(linear(x, weight, bias), F.linear(x, weight, bias))
        if activated.why_not(x, weight, bias) is None:
            assert torch.equal(
                linear(x, weight, bias, "gelu"), activated.linear(x, weight, bias, "gelu")
            )


def test_asked_for_by_name(
    products: list[tuple[int, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Then whatever the size, also of its gradients."""
    x, (weight, bias) = torch.randn(9, 24), layer()
    linear(x, weight, bias, backend="bf16x6").sum().backward()
    assert products == [(9, 40, 24), (40, 24, 9)]
    monkeypatch.setattr(bf16x6, "unavailable", lambda: "there are no units")
    with pytest.raises(BackendError, match="'bf16x6' backend cannot serve linear: there are no"):
        linear(x, weight, bias, backend="bf16x6")


def test_transforms(products: list[tuple[int, ...]]) -> None:
    x, (weight, bias) = torch.randn(2, ROWS, C), layer(C, F_OUT)
    got = torch.func.vmap(lambda rows: linear(rows, weight, bias))(x)
    torch.testing.assert_close(got, F.linear(x, weight, bias))
    tangent, rows = torch.randn(ROWS, C), x[0]

    def along(rows: Tensor, tangent: Tensor) -> Tensor:
        given = (weight.detach(), bias.detach())
        made: Tensor = torch.func.jvp(lambda x: linear(x, *given), (rows,), (tangent,))[1]
        return made

    torch._dynamo.reset()
    for way in (along, torch.compile(along, backend="aot_eager")):
        torch.testing.assert_close(way(rows, tangent), F.linear(tangent, weight))
    assert products == []


def test_other_tensors_are_torchs(products: list[tuple[int, ...]]) -> None:
    x, (weight, _) = torch.randn(ROWS, C), layer(C, F_OUT)
    zero = torch._efficientzerotensor((ROWS, C))
    with torch.no_grad():
        assert torch.equal(linear(zero, weight), F.linear(zero, weight))
        sparse = x.to_sparse()
        assert torch.equal(linear(sparse, weight), F.linear(sparse, weight))
    assert products == []


def test_a_trace_has_the_op(products: list[tuple[int, ...]]) -> None:
    """And not what the kernel wrote once."""
    x, (weight, bias) = torch.randn(ROWS, C), layer(C, F_OUT)
    with torch.no_grad():
        traced = make_fx(lambda x: linear(x, weight, bias, "gelu"))(x)
        other = torch.randn(ROWS, C)
        assert torch.equal(traced(other), linear(other, weight, bias, "gelu"))
        exported = torch.export.export(Layer(weight, bias), (x,)).module()
    wanted = linear(other, weight.detach(), bias.detach(), "gelu")
    torch.testing.assert_close(exported(other).detach(), wanted, rtol=1e-5, atol=1e-5)


class Layer(nn.Module):
    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.weight, self.bias = weight, bias

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias, "gelu")


def test_only_what_a_gradient_needs_is_kept(products: list[tuple[int, ...]]) -> None:
    """So that the rest may be written, and is not held."""
    x, (weight, bias) = torch.randn(ROWS, C), layer(C, F_OUT)
    kept: list[int] = []

    def note(tensor: Tensor) -> Tensor:
        kept.append(tensor.numel())
        return tensor

    frozen = weight.detach()
    for given, sizes in (
        ((x, frozen, bias), []),
        ((x.clone().requires_grad_(), frozen, bias), [weight.numel()]),
        ((x, weight, bias), [x.numel()]),
    ):
        kept.clear()
        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            y = linear(*given)
        assert kept == sizes
        y.sum().backward()


@pytest.mark.parametrize("turned", [False, True])
def test_opcheck(turned: bool) -> None:
    a, b = torch.randn(5, 7, requires_grad=True), nn.Parameter(torch.randn(7, 6))
    given = (
        a,
        nn.Parameter(b.detach().t().contiguous()).t() if turned else b,
        torch.randn(6),
        "",
        False,
    )
    torch.library.opcheck(torch.ops.pyenc.product.default, given)
    plain = (a.detach(), b.detach(), None, "gelu", True)
    torch.library.opcheck(torch.ops.pyenc.product.default, plain)


def test_the_second_derivative() -> None:
    def twice(product: Callable[[Tensor, Tensor], Tensor]) -> tuple[Tensor, ...]:
        a, b = (t.detach().requires_grad_() for t in operands)
        first = torch.autograd.grad(product(a, b).pow(3).sum(), (a, b), create_graph=True)
        return torch.autograd.grad(sum(g.square().sum() for g in first), (a, b))

    operands = torch.randn(5, 7), torch.randn(7, 6)
    got = twice(lambda a, b: torch.ops.pyenc.product(a, b, None, "", False))
    for one, other in zip(got, twice(torch.matmul), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
