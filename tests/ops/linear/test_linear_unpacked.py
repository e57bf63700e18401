"""oneDNN with operands as they lie: when it is taken, compiled or not, and that it is right."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pyenc.ops import linear
from pyenc.ops.backend import explain
from pyenc.ops.linear import backend_table, product, wide
from pyenc.ops.linear import onednn as linear_onednn
from pyenc.ops.linear import packs as linear_packs
from pyenc.ops.linear.reference import linear_reference
from tests.ops.linear.linear_support import DTYPES, check, layer, onednn, pin, the_same
from tests.oracle import assert_right

pytestmark = onednn

ROWS, C, F_OUT = 300, 256, 256  # large enough to gain
BOTH: dict[str, float | bool] = {"onednn": 2.0, "unpacked": 2.0}


class Products(list[tuple[int, ...]]):
    """(M, N, K) of each product that oneDNN makes; a pack hides its own N."""


@pytest.fixture
def products(monkeypatch: pytest.MonkeyPatch) -> Products:
    made = Products()
    plain = linear_onednn.pointwise

    def noted(x: Tensor, weight: Tensor, *rest: object) -> Tensor:
        out = plain(x, weight, *rest)  # type: ignore[arg-type]
        made.append((out.numel() // out.shape[-1], out.shape[-1], x.shape[-1]))
        return out

    monkeypatch.setattr(linear_onednn, "pointwise", noted)
    pin(monkeypatch, BOTH, torch.float32)
    linear_onednn.why_not(torch.float32)
    made.clear()
    return made


def test_the_choice(products: Products, monkeypatch: pytest.MonkeyPatch) -> None:
    x, (weight, bias) = torch.randn(ROWS, C), layer(C, F_OUT)

    def serves(x: Tensor = x, weight: Tensor = weight) -> str:
        return explain(backend_table(x, weight, bias))["onednn"]

    assert serves() == "serves"
    assert serves(weight=weight * 2) == "serves"
    assert serves(x[:9]) == "the product is too small to gain"
    with torch.autocast("cpu", torch.bfloat16):
        assert serves() == "autocast makes another product"
    with monkeypatch.context() as patch:
        patch.setattr(torch.backends.mkldnn, "enabled", False)
        assert serves() == "torch.backends.mkldnn is disabled"
        linear(x, weight, bias).sum().backward()
        assert products == []
    for gains in ({"unpacked": 1.1}, {"unpacked": 1.4, "bf16x6": 1.5}, {"onednn": 2.0}):
        pin(monkeypatch, gains)  # type: ignore[arg-type]
        assert serves() == "a gradient is needed"
        with torch.no_grad():
            assert "no parameter" in serves(weight=weight * 2)
    pin(monkeypatch, {"unpacked": 1.2, "onednn": 1.3})
    assert serves() == "serves"
    pin(monkeypatch, {})
    monkeypatch.setenv(linear_onednn.VARIABLE, "onednn")
    assert serves(x[:1]) == "serves"
    monkeypatch.setenv(linear_onednn.VARIABLE, "torch")
    assert serves() == "a gradient is needed"
    with torch.no_grad():
        assert serves() == "PYENC_LINEAR=torch"


def test_every_gradient_and_no_other(products: Products) -> None:
    x, (weight, bias) = torch.randn(2, ROWS // 2, C, requires_grad=True), layer(C, F_OUT)
    linear(x, weight, bias, "gelu").square().sum().backward()
    assert products == [(ROWS, F_OUT, C), (ROWS, C, F_OUT), (F_OUT, C, ROWS)]
    assert weight.grad is not None
    assert weight.grad.is_contiguous()
    assert linear_packs.held() == 0  # of a weight that is about to change
    products.clear()
    linear(x.detach()[:, :3], weight, bias).sum().backward()
    assert products == []
    with torch.no_grad():
        linear(x, weight, bias)
        assert linear_packs.held() == weight.nbytes
        linear_packs.forget_all()
        made = weight * 2
        check(linear(x, made, bias, "relu"), x, made, bias, activation="relu")
    assert linear_packs.held() == 0
    assert len(products) == 2


def test_a_wide_layers_gradient_is_turned_where_that_moves_less(products: Products) -> None:
    x, (weight, _) = torch.randn(ROWS, 64), layer(64, 1024)
    g = torch.randn(ROWS, 1024)
    linear(x, weight).backward(g)
    assert products == [(ROWS, 1024, 64), (64, 1024, ROWS)]
    assert weight.grad is not None
    assert weight.grad.is_contiguous()
    exact = g.double().t() @ x.double()
    torch.testing.assert_close(weight.grad.double(), exact, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.usefixtures("poison")
def test_against_the_oracle(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """By name, with gradients: odd sizes, and operands that lie in every way."""
    if reason := linear_onednn.why_not(dtype):
        pytest.skip(reason)
    pin(monkeypatch, {})
    lie: dict[str, Callable[[Tensor], Tensor]] = {
        "as they are": lambda t: t,
        "turned": lambda t: t.t().contiguous().t(),
        "in every other column": lambda t: torch.stack([t, t], -1).flatten(-2)[:, ::2],
        "in wider rows": lambda t: torch.cat([t, t, t], -1)[:, t.shape[1] : 2 * t.shape[1]],
        "one row for all": lambda t: t[:1].expand_as(t),
    }

    def answers(m: int, c: int, f: int, how: str) -> list[tuple[Tensor, ...]]:
        """y and the gradients, by oneDNN, naively and by the oracle."""
        weight, x = (lie[how](torch.randn(n, c).to(dtype)) for n in (f, m))
        given = (x, weight, torch.randn(f).to(dtype), torch.randn(m, f).to(dtype))

        def gradients(
            function: Callable[..., Tensor], wider: torch.dtype, **how: str
        ) -> tuple[Tensor, ...]:
            *leaves, target = (t.detach().to(wider) for t in given)
            leaves = [t.requires_grad_() for t in leaves]
            y = function(*leaves, "silu", **how)
            return y.detach(), *torch.autograd.grad((y * target).sum(), leaves)

        return [
            gradients(linear, dtype, backend="onednn"),
            gradients(linear_reference, dtype),
            gradients(linear_reference, torch.float64),
        ]

    for (m, c, f), how in itertools.product(((1, 1, 1), (7, 24, 40), (65, 33, 130)), lie):
        # Of one number the naive form is now and then off by nothing: of many it is off as it is.
        draws = [answers(m, c, f, how) for _ in range(50 if m * c * f == 1 else 1)]
        for place in range(4):
            three = (torch.stack([draw[by][place] for draw in draws]) for by in range(3))
            assert_right(*three, gradient=place > 0, what=f"{m} {c} {f} {how} {place}")


@pytest.mark.parametrize("activation", [None, "gelu", "silu"])
@pytest.mark.parametrize("parameter", [True, False])
def test_the_same_compiled_or_not(
    products: Products, activation: str | None, parameter: bool
) -> None:
    """Also where a call's size decides, and with gradients."""
    weight, bias = layer(C, F_OUT)
    factor = torch.tensor(2.0)

    def forward(x: Tensor) -> Tensor:
        return linear(x, weight if parameter else weight * factor, bias, activation)

    torch._dynamo.reset()
    compiled = torch.compile(forward, fullgraph=True, backend="aot_eager", dynamic=True)
    # Products of 2^22 multiplications gain from 64 rows on, with a pack those of 2^20, from 16 on.
    for rows, grad in itertools.product((ROWS, 3, 63, 64), (False, True)):
        x = torch.randn(rows, C)
        found = the_same((compiled, forward), x, [weight, bias], grad, products)
        packed = parameter and not grad
        assert len(found) == (1 + grad if rows >= (16 if packed else 64) else 0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_without_a_gradient_and_without_a_pack(
    dtype: torch.dtype, products: Products, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a pack would gain too little or cannot be; little is enough, for it costs nothing."""
    if reason := linear_onednn.why_not(dtype):
        pytest.skip(reason)
    torch._dynamo.reset()
    x, (weight, bias) = torch.randn(ROWS, C).to(dtype), layer(C, F_OUT, dtype=dtype)

    def forward(x: Tensor, weight: Tensor) -> Tensor:
        return linear(x, weight, bias, "gelu")

    compiled = torch.compile(forward, fullgraph=True, backend="aot_eager", dynamic=True)
    for gains, of_parameter, of_another in (
        ({"onednn": 1.1, "forward": 1.06}, "as it lies", "as it lies"),
        ({"onednn": 1.2, "forward": 1.06}, "packed", "as it lies"),
        ({"onednn": 1.1, "forward": 1.02}, "as it lies", "as it lies"),
        ({"onednn": 1.1, "forward": 1.01}, "torch", "torch"),
        ({"onednn": 1.1, "forward": 1.06, "unpacked": 2.0}, "as it lies", "as it lies"),
        ({"forward": 1.06, "wide": 1.2}, "torch", "torch"),
        ({}, "torch", "torch"),
    ):
        pin(monkeypatch, gains, dtype)  # type: ignore[arg-type]
        for given, wanted in ((weight, of_parameter), (weight * 2, of_another)):
            linear_packs.forget_all()
            products.clear()
            with torch.no_grad():
                got = forward(x, given.detach() if given is not weight else given)
                assert len(products) == (wanted != "torch")
                assert (linear_packs.held() > 0) == (wanted == "packed")
                serves = explain(backend_table(x, given, bias))["onednn"] == "serves"
                assert serves == (wanted != "torch")
                check(got, x, given, bias, activation="gelu")
                torch._dynamo.reset()
                assert torch.equal(compiled(x, given), got)
                made = len(products)
                few = forward(x[:9], given)
                check(few, x[:9], given, bias, activation="gelu")
                assert torch.equal(compiled(x[:9], given), few)
                assert len(products) == made
    pin(monkeypatch, {"onednn": 1.1, "forward": 1.06}, dtype)
    products.clear()
    forward(x, weight).sum().backward()
    assert products == []


def test_halves_in_float32_go_through_it(
    products: Products, monkeypatch: pytest.MonkeyPatch
) -> None:
    pin(monkeypatch, {"wide": 2.0}, torch.float16)
    x, (weight, bias) = torch.randn(ROWS, C).half(), layer(C, F_OUT, dtype=torch.float16)
    with torch.no_grad():
        plainly = linear(x, weight, bias)
        assert products == []
        monkeypatch.setattr(product, "not_preferred", lambda way, dtype: None)
        monkeypatch.setattr(product, "WAYS", ("onednn",))
        got = wide.linear(x, weight, bias, None)
    assert products == [(ROWS, F_OUT, C)]
    assert got.dtype == torch.float16
    check(got, x, weight, bias)
    torch.testing.assert_close(got, plainly)


def test_transforms(products: Products) -> None:
    """As torch has them, also forward through parameters without gradients."""
    x, (weight, bias) = torch.randn(2, ROWS, C), layer(C, F_OUT)
    got = torch.func.vmap(lambda rows: linear(rows, weight, bias))(x)
    check(got, x, weight, bias)
    weight.requires_grad_(False), bias.requires_grad_(False)
    tangent = torch.randn(ROWS, C)
    given = (lambda x: linear(x, weight, bias)), (x[0],), (tangent,)
    check(torch.func.jvp(*given)[1], tangent, weight, None)
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(x[0], tangent)
        got = torch.autograd.forward_ad.unpack_dual(linear(dual, weight, bias)).tangent
    check(got, tangent, weight, None)
    assert products == []


def test_the_second_derivative(products: Products) -> None:
    def twice(function: Callable[..., Tensor], dtype: torch.dtype) -> tuple[Tensor, ...]:
        leaves = [t.detach().to(dtype).requires_grad_() for t in operands]
        first = torch.autograd.grad(function(*leaves).pow(3).sum(), leaves, create_graph=True)
        return torch.autograd.grad(sum(g.square().sum() for g in first), leaves)

    operands = torch.randn(ROWS, C) / 16, torch.randn(F_OUT, C) / 16
    for one, exact in zip(
        twice(linear, torch.float32), twice(F.linear, torch.float64), strict=True
    ):
        assert (one - exact).norm() < 1e-5 * exact.norm()
    assert len(products) > 3


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(C, F_OUT), nn.Linear(F_OUT, C)

    def forward(self, x: Tensor) -> Tensor:
        return linear(linear(x, *self.one.parameters(), "gelu"), *self.two.parameters())


def test_a_step_of_training_and_what_follows(products: Products) -> None:
    """The pack that inference left is not what the next step of training multiplies by."""
    torch.manual_seed(0)
    net, other, x = Net(), Net(), torch.randn(ROWS, C)
    other.load_state_dict(net.state_dict())
    optimizers = [torch.optim.SGD(n.parameters(), lr=0.1) for n in (net, other)]
    for _ in range(3):
        for optimizer in optimizers:
            optimizer.zero_grad()
        net(x).square().mean().backward()
        F.linear(
            F.gelu(F.linear(x, *other.one.parameters())), *other.two.parameters()
        ).square().mean().backward()
        for optimizer in optimizers:
            optimizer.step()
        with torch.no_grad():
            net(x)
    for mine, torchs in zip(net.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(mine, torchs, rtol=1e-4, atol=1e-5)
    assert len(products) == 3 * 5 + 3 * 2
