"""`linear` is right on every backend, in every way it can be called."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pyenc.errors import InputError
from pyenc.ops import linear
from pyenc.ops.linear import onednn as linear_onednn
from pyenc.ops.linear import packs as linear_packs
from pyenc.ops.linear.reference import linear_reference
from tests.ops.linear.linear_support import DTYPES, check, faster, layer, onednn
from tests.oracle import assert_right

# None: as it is chosen; "cpu": where the extension is, bias and activation in one pass.
BACKENDS = ["torch", None, "cpu", pytest.param("onednn", marks=onednn)]
ACTIVATIONS = [None, "gelu", "gelu_tanh", "silu", "relu"]


def cut(x: Tensor, kind: str) -> Tensor:
    """The same values in another arrangement of memory."""
    if kind == "transposed":
        return x.transpose(0, -1).contiguous().transpose(0, -1)
    if kind == "strided":
        return torch.stack([x, x], -1).flatten(-2)[..., ::2]
    return x


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("fuses", [True, False])
@pytest.mark.usefixtures("poison")
def test_against_the_oracle(
    backend: str,
    dtype: torch.dtype,
    activation: str | None,
    fuses: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if backend == "onednn" and (reason := linear_onednn.why_not(dtype)):
        pytest.skip(reason)
    faster(monkeypatch, 2.0 if fuses else 0.5)
    for shape, f, biased, kind in (
        ((7, 24), 40, True, "plain"),
        ((1, 1), 1, True, "plain"),
        ((2, 3, 5, 17), 33, False, "plain"),
        ((65,), 3, True, "plain"),
        ((33, 129), 65, True, "transposed"),
        ((5, 64), 128, False, "strided"),
        ((0, 24), 40, True, "plain"),
        ((3, 0, 24), 40, False, "plain"),
        ((257, 96), 130, True, "plain"),
    ):
        found = []
        # What the naive form of a few numbers is off by is luck: as many draws as make a sample.
        for _ in range(max(1, 64 // (math.prod(shape[:-1]) * f or 64))):
            x = torch.randn(shape, dtype=dtype)
            weight = torch.randn(f, shape[-1], dtype=dtype)
            bias = torch.randn(f, dtype=dtype) if biased else None
            given = (cut(x, kind), cut(weight, kind), bias)
            naive = linear_reference(x, weight, bias, activation)
            wide = [None if t is None else t.double() for t in (x, weight, bias)]
            oracle = linear_reference(*wide, activation)
            with torch.no_grad():
                got = linear(*given, activation, backend=backend)
                again = linear(*given, activation, backend=backend)
            assert got.dtype == dtype
            assert got.is_contiguous()
            assert torch.equal(got, again)
            found.append((got, naive, oracle))
        assert_right(*map(torch.stack, zip(*found, strict=True)), what=f"{shape} {kind}")


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_gradients_against_the_oracle(backend: str, activation: str | None) -> None:
    inputs = [torch.randn(2, 9, 24), *layer()]
    weight = torch.randn(2, 9, 40)

    def gradients(
        function: Callable[..., Tensor], dtype: torch.dtype, **named: str
    ) -> tuple[Tensor, ...]:
        leaves = [t.detach().to(dtype).requires_grad_() for t in inputs]
        out = function(*leaves, activation, **named)
        return torch.autograd.grad((out * weight.to(dtype)).sum(), leaves)

    for got, naive, oracle in zip(
        gradients(linear, torch.float32, backend=backend),
        gradients(linear_reference, torch.float32),
        gradients(linear_reference, torch.float64),
        strict=True,
    ):
        assert_right(got, naive, oracle, gradient=True)


@onednn
def test_only_the_gradients_that_are_wanted() -> None:
    """The private op of torch leaves x.grad None; ours must not."""
    x, (weight, _) = torch.randn(3, 24, requires_grad=True), layer()
    weight.requires_grad_(False)
    linear(x, weight, None, "gelu", backend="onednn").sum().backward()
    assert x.grad is not None
    assert weight.grad is None


@pytest.mark.parametrize("backend", [None, "torch", "cpu", "triton"])
def test_autocast_is_torchs(backend: str | None) -> None:
    x, (weight, bias) = torch.randn(9, 24), layer()
    with torch.autocast("cpu", torch.bfloat16):
        got = linear(x, weight, bias, "gelu", backend=backend)
        assert torch.equal(got, F.gelu(F.linear(x, weight, bias)))
        assert got.dtype == torch.bfloat16
        mixed = linear(x.bfloat16(), weight, bias, backend=backend)
        assert torch.equal(mixed, F.linear(x, weight, bias))


def test_meta_and_float64() -> None:
    x = torch.empty(2, 3, 24, device="meta")
    assert linear(x, torch.empty(40, 24, device="meta")).shape == (2, 3, 40)
    wide, (weight, bias) = torch.randn(9, 24).double(), layer(dtype=torch.float64)
    assert torch.equal(linear(wide, weight, bias), F.linear(wide, weight, bias))


def test_nothing_to_multiply() -> None:
    with torch.no_grad():
        for f, c in ((0, 3), (3, 0)):
            weight, bias = nn.Parameter(torch.randn(f, c)), torch.randn(f)
            got = torch.ops.pyenc.linear(torch.randn(2, c), weight, bias, "")
            assert torch.equal(got, linear(torch.randn(2, c), weight, bias))
            assert torch.equal(got, bias.expand(2, f))


def test_func_transforms() -> None:
    x, (weight, bias) = torch.randn(4, 9, 24), layer()
    got = torch.func.vmap(lambda row: linear(row, weight, bias))(x)
    torch.testing.assert_close(got, F.linear(x, weight, bias))


@onednn
@pytest.mark.parametrize("activation", ["", "gelu"])
def test_opcheck(activation: str) -> None:
    x, (weight, bias) = torch.randn(2, 9, 24, requires_grad=True), layer()
    for arguments in ((x, weight, bias, activation), (x.detach(), weight.detach(), None, "")):
        torch.library.opcheck(torch.ops.pyenc.linear.default, arguments)


@onednn
@pytest.mark.parametrize("backend", [None, "onednn"])
def test_compiled_without_a_graph_break(
    backend: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    faster(monkeypatch)
    module = nn.Linear(128, 600)
    x = torch.randn(220, 128)  # large enough to gain

    def forward(x: Tensor) -> Tensor:
        return linear(x, module.weight, module.bias, "gelu", backend=backend)

    def plainly(x: Tensor) -> tuple[Tensor, ...]:
        leaves = [p.detach().to(x.dtype).requires_grad_() for p in module.parameters()]
        return torch.autograd.grad(linear_reference(x, *leaves, "gelu").square().sum(), leaves)

    compiled = torch.compile(forward, fullgraph=True, backend="aot_eager")
    for _ in range(2):
        with torch.no_grad():
            check(compiled(x), x, module.weight, module.bias, activation="gelu")
            module.weight.mul_(-1.5)
            check(compiled(x), x, module.weight, module.bias, activation="gelu")
        assert linear_packs.held() == 600 * 128 * 4
        grads = torch.autograd.grad(compiled(x).square().sum(), list(module.parameters()))
        for got, naive, oracle in zip(grads, plainly(x), plainly(x.double()), strict=True):
            assert_right(got, naive, oracle, gradient=True)
        torch.optim.AdamW(module.parameters(), fused=True).step()


def test_bad_arguments_are_named() -> None:
    x, (weight, bias) = torch.randn(9, 24), layer()
    for given, message in (
        ((x[:, 1:], weight), r"weight must be \(F, C\).* \(40, 24\) and \(9, 23\)"),
        ((x, weight[0]), r"weight must be \(F, C\)"),
        ((torch.tensor(1.0), weight), r"weight must be \(F, C\)"),
        ((x, weight, bias[1:]), r"bias must be \(40,\), got \(39,\)"),
        ((x, weight, bias, "elu"), "unknown activation 'elu'"),
        ((x.double(), weight, bias), r"share a dtype; got \['torch.float32', 'torch.float64'\]"),
        ((x.long(), weight), "x must be float"),
        ((x, weight.to("meta")), "weight is on meta, x on cpu"),
    ):
        with pytest.raises(InputError, match=message):
            linear(*given)
