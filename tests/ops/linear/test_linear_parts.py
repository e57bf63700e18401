"""float32 by parts of bfloat16: when it is taken, compiled or not, and that others are not changed.

What it computes: tests/csrc/linear/product_cases.py. Here the kernel is stood in for, so that the
tests say the same on every processor.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx

from pyenc.errors import BackendError
from pyenc.ops import linear
from pyenc.ops.backend import explain
from pyenc.ops.constant import constant_result
from pyenc.ops.linear import activated, backend_table, by_parts, parts, product
from pyenc.ops.linear import onednn as linear_onednn
from tests.ops.linear.linear_support import check, layer, pin, the_same

ROWS, C, F_OUT = 600, 512, 512  # large enough to gain


class Products(list[tuple[int, ...]]):
    """(M, N, K) of each product that is made by parts, and of how many parts each was."""

    def __init__(self) -> None:
        super().__init__()
        self.parts: list[int] = []

    def forget(self) -> None:
        self.clear()
        self.parts.clear()


@pytest.fixture
def products(monkeypatch: pytest.MonkeyPatch) -> Products:
    """On a processor that prefers parts, two of them where that is allowed."""
    made = Products()
    monkeypatch.delenv(linear_onednn.VARIABLE, raising=False)
    pin(monkeypatch, {"bf16x6": 2.0, "bf16x3": 3.0}, torch.float32)
    monkeypatch.setattr(parts, "unavailable", constant_result(lambda: None))

    def multiply(a: Tensor, b: Tensor, bias: Tensor | None, activation: str, way: str) -> Tensor:
        made.append((a.shape[0], b.shape[1], a.shape[1]))
        made.parts.append(parts.PARTS[way])
        return product.by_torch(a, b, bias, activation)

    monkeypatch.setattr(parts, "multiply", multiply)
    return made


@pytest.fixture
def asked() -> Iterator[Callable[[str], None]]:
    """Ask torch for products of float32 in "ieee", "tf32" or "bf16"."""
    matmul = torch.backends.mkldnn.matmul
    before = matmul.fp32_precision
    yield lambda precision: setattr(matmul, "fp32_precision", precision)
    matmul.fp32_precision = before


def test_the_choice(products: Products, monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_who_asks_torch_for_less_gets_that(
    products: Products, asked: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    x, (weight, bias) = torch.randn(ROWS, C), layer(C, F_OUT)

    def made_of() -> tuple[str, str, list[int]]:
        products.forget()
        linear(x, weight, bias).sum().backward()
        said = explain(backend_table(x, weight, bias))
        return said["bf16x3"], said["bf16x6"], list(products.parts)

    for_high = 'it is for torch.set_float32_matmul_precision("high")'
    asked("ieee")
    assert made_of() == (for_high, "serves", [3, 3])
    asked("tf32")
    assert made_of() == ("serves", "serves", [2, 2])
    pin(monkeypatch, {"bf16x6": 2.0, "bf16x3": 1.9})
    assert made_of()[2] == [3, 3]
    pin(monkeypatch, {"bf16x6": 1.1, "bf16x3": 1.9})
    assert made_of()[2] == [2, 2]
    asked("bf16")
    other = "torch is asked for bf16 products of float32"
    assert made_of() == (other, other, [])
    monkeypatch.setenv(linear_onednn.VARIABLE, "bf16x3")
    assert made_of()[2] == [2, 2]


@pytest.mark.parametrize("owner", ["backends", "mkldnn", "matmul"])
def test_each_of_torchs_switches(owner: str) -> None:
    mkldnn = torch.backends.mkldnn
    switches = {"backends": torch.backends, "mkldnn": mkldnn, "matmul": mkldnn.matmul}
    before = switches[owner].fp32_precision
    try:
        for precision in ("tf32", "bf16", "ieee"):
            switches[owner].fp32_precision = precision
            assert linear_onednn.precision() == precision
    finally:
        switches[owner].fp32_precision = before


def test_the_switch_of_everybody() -> None:
    """In a process of its own: torch forbids to mix it with the others."""
    code = """
import torch
from pyenc.ops.linear import onednn
for precision in ("high", "medium", "highest"):
    torch.set_float32_matmul_precision(precision)
    print(onednn.precision())
"""
    said = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert said.stdout.split() == ["tf32", "bf16", "ieee"]


def test_who_else_wants_to_know(products: Products, monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(2, 3)
    assert by_parts(x)
    assert by_parts(x, "cpu")
    assert not by_parts(x, "torch")
    assert not by_parts(x, "reference")
    assert not by_parts(x.bfloat16())
    pin(monkeypatch, {})
    assert not by_parts(x)
    assert by_parts(x, "bf16x3")
    monkeypatch.setattr(parts, "unavailable", lambda: "there are no units")
    assert not by_parts(x, "bf16x3")


def test_a_graph_asks_anew(products: Products, asked: Callable[[str], None]) -> None:
    """What torch is asked for when it runs, not when it was traced."""
    x, (weight, bias) = torch.randn(ROWS, C), layer(C, F_OUT)
    torch._dynamo.reset()
    compiled = torch.compile(lambda x: linear(x, weight, bias), fullgraph=True, backend="aot_eager")
    for precision, count in (("tf32", [2, 2]), ("ieee", [3, 3]), ("bf16", []), ("tf32", [2, 2])):
        asked(precision)
        products.forget()
        compiled(x).sum().backward()
        assert products.parts == count, precision


@pytest.mark.parametrize("activation", [None, "gelu", "silu"])
def test_the_same_compiled_or_not(
    products: Products, activation: str | None, monkeypatch: pytest.MonkeyPatch
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
            found = the_same((compiled, forward), x, [weight, bias], grad, products)
            by_parts = [(rows, F_OUT, C), (F_OUT, C, rows)][: 1 + grad]
            assert found == (by_parts if rows >= ROWS else [])


def test_every_gradient_and_no_other(products: Products) -> None:
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
    monkeypatch.setattr(parts, "unavailable", lambda: None)
    monkeypatch.setattr(parts, "multiply", lambda *_: None)
    x, (weight, bias) = torch.randn(ROWS, C), layer(C, F_OUT)
    with torch.no_grad():
        assert torch.equal(linear(x, weight, bias), F.linear(x, weight, bias))
        if activated.why_not(x, weight, bias) is None:
            assert torch.equal(
                linear(x, weight, bias, "gelu"), activated.linear(x, weight, bias, "gelu")
            )


@pytest.mark.parametrize("way", parts.PARTS)
def test_asked_for_by_name(products: Products, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Then whatever the size and the precision that torch is asked for, also of its gradients."""
    x, (weight, bias) = torch.randn(9, 24), layer()
    linear(x, weight, bias, backend=way).sum().backward()
    assert products == [(9, 40, 24), (40, 24, 9)]
    assert products.parts == [parts.PARTS[way]] * 2
    monkeypatch.setattr(parts, "unavailable", lambda: "there are no units")
    with pytest.raises(BackendError, match=f"'{way}' backend cannot serve linear: there are no"):
        linear(x, weight, bias, backend=way)


def test_transforms(products: Products) -> None:
    x, (weight, bias) = torch.randn(2, ROWS, C), layer(C, F_OUT)
    got = torch.func.vmap(lambda rows: linear(rows, weight, bias))(x)
    check(got, x, weight, bias)
    tangent, rows = torch.randn(ROWS, C), x[0]

    def along(rows: Tensor, tangent: Tensor) -> Tensor:
        given = (weight.detach(), bias.detach())
        made: Tensor = torch.func.jvp(lambda x: linear(x, *given), (rows,), (tangent,))[1]
        return made

    torch._dynamo.reset()
    for way in (along, torch.compile(along, backend="aot_eager")):
        check(way(rows, tangent), tangent, weight, None)
    assert products == []


def test_other_tensors_are_torchs(products: Products) -> None:
    x, (weight, _) = torch.randn(ROWS, C), layer(C, F_OUT)
    zero = torch._efficientzerotensor((ROWS, C))
    with torch.no_grad():
        assert torch.equal(linear(zero, weight), F.linear(zero, weight))
        sparse = x.to_sparse()
        assert torch.equal(linear(sparse, weight), F.linear(sparse, weight))
    assert products == []


def test_a_trace_has_the_op(products: Products) -> None:
    """And not what the kernel wrote once."""
    x, (weight, bias) = torch.randn(ROWS, C), layer(C, F_OUT)
    with torch.no_grad():
        traced = make_fx(lambda x: linear(x, weight, bias, "gelu"))(x)
        other = torch.randn(ROWS, C)
        assert torch.equal(traced(other), linear(other, weight, bias, "gelu"))
        exported = torch.export.export(Layer(weight, bias), (x,)).module()
    check(exported(other).detach(), other, weight, bias, activation="gelu")


class Layer(nn.Module):
    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.weight, self.bias = weight, bias

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias, "gelu")


def test_only_what_a_gradient_needs_is_kept(products: Products) -> None:
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
        "",
    )
    torch.library.opcheck(torch.ops.pyenc.product.default, given)
    plain = (a.detach(), b.detach(), None, "gelu", "bf16x6")
    torch.library.opcheck(torch.ops.pyenc.product.default, plain)


def test_the_second_derivative() -> None:
    def twice(product: Callable[[Tensor, Tensor], Tensor]) -> tuple[Tensor, ...]:
        a, b = (t.detach().requires_grad_() for t in operands)
        first = torch.autograd.grad(product(a, b).pow(3).sum(), (a, b), create_graph=True)
        return torch.autograd.grad(sum(g.square().sum() for g in first), (a, b))

    operands = torch.randn(5, 7), torch.randn(7, 6)
    got = twice(lambda a, b: torch.ops.pyenc.product(a, b, None, "", ""))
    for one, other in zip(got, twice(torch.matmul), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
