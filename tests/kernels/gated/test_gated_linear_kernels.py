"""Triton's gated feed-forward in one kernel against the float64 oracle, forward and backward."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

from pyenc.errors import InputError
from pyenc.ops import ACTIVATIONS, gated_linear, use_backend
from pyenc.ops.gated import apart_why
from pyenc_kernels import configs, gated
from pyenc_kernels.configs import Config
from tests.kernels.attention.attention_case import DTYPES
from tests.oracle import assert_right, naively

SMALL = Config(16, 16, 4, 1)


def results(
    tensors: list[Tensor | None],
    activation: str,
    gate_first: bool,
    backend: str,
    dtype: torch.dtype,
) -> list[Tensor]:
    """The output, and the gradients of x, weight and bias, where there is one."""
    x, weight, bias = (None if t is None else t.to(dtype).requires_grad_() for t in tensors)
    assert x is not None
    assert weight is not None
    with naively():
        out = gated_linear(x, weight, bias, activation, gate_first, backend=backend)
    grad = torch.randn(out.shape, generator=torch.Generator().manual_seed(3)).to(out.device, dtype)
    leaves = [t for t in (x, weight, bias) if t is not None]
    return [out.detach(), *torch.autograd.grad(out, leaves, grad)]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_against_the_oracle(
    dtype: torch.dtype, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every activation, both orders of the halves, more tiles than a group has, and widths that no
    block divides."""
    monkeypatch.setattr(gated.launch, "config_for", lambda *_: SMALL)
    monkeypatch.setattr(gated.launch, "GROUP", 2)
    shapes = [(50, 80, 20), (1, 16, 1), (3, 64, 33), (17, 48, 5)]
    for i, activation in enumerate(ACTIVATIONS):
        rows, _, columns = shapes[i]

        def draw(i: int = i, activation: str = activation) -> list[list[Tensor]]:
            rows, inner, columns = shapes[i]
            tensors = [
                torch.randn(rows, inner, device=device).to(dtype),
                (torch.randn(2 * columns, inner, device=device) * inner**-0.5).to(dtype),
                torch.randn(2 * columns, device=device).to(dtype) if i < 3 else None,
            ]
            call = tensors, activation, i % 2 == 0
            return [
                results(*call, "triton", dtype), results(*call, "reference", dtype),
                results(*call, "reference", torch.float64),
            ]  # fmt: skip

        # Of few numbers the naive form is now and then hardly off: of many it is off as it is.
        draws = [draw() for _ in range(30 if rows == columns == 1 else 1)]
        for j in range(len(draws[0][0])):
            each = (torch.stack([found[by][j] for found in draws]) for by in range(3))
            assert_right(*each, gradient=j > 0, what=f"{activation} {j}")


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The launchers that are called, by name."""
    names: list[str] = []

    def noting(name: str) -> Any:
        real = getattr(gated, name)

        def call(*arguments: Any) -> Any:
            names.append(name)
            return real(*arguments)

        return call

    for name in ("forward", "linear_forward", "backward", "linear_backward"):
        monkeypatch.setattr(gated, name, noting(name))
    return names


def test_what_is_kept_for_the_gradient_is_what_was_given(device: str, launched: list[str]) -> None:
    x, weight = (torch.randn(4, 16, device=device, requires_grad=True) for _ in range(2))
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        out = gated_linear(x, weight, None, "silu", backend="triton")
    assert {t.data_ptr() for t in kept} == {x.data_ptr(), weight.data_ptr()}
    out.sum().backward()
    assert launched == ["linear_forward", "linear_backward"]


def test_strides_leading_axes_and_what_needs_no_gradient(device: str) -> None:
    x, bias = torch.randn(2, 3, 40, device=device)[..., 3:19], torch.randn(8, device=device)
    weight = torch.randn(16, 8, device=device).t().requires_grad_()
    out, right = (gated_linear(x, weight, bias, "relu", backend=b) for b in ("triton", "torch"))
    torch.testing.assert_close(out, right)
    (grad,) = torch.autograd.grad(out.sum(), weight)
    torch.testing.assert_close(grad, *torch.autograd.grad(right.sum(), weight))


@pytest.mark.parametrize("learned", [False, True])
@pytest.mark.parametrize("layout", [torch.sparse_coo, torch.sparse_csr], ids=str)
def test_a_sparse_weight_is_for_torchs_product(
    layout: torch.layout, learned: bool, device: str, launched: list[str]
) -> None:
    x = torch.randn(5, 16, device=device, requires_grad=learned)
    dense = torch.randn(8, 16, device=device).relu()
    weight = dense.to_sparse(layout=layout)
    with torch.set_grad_enabled(learned):
        out = gated_linear(x, weight, None, "silu", backend="triton")
        right = gated_linear(x, dense, None, "silu", backend="reference")
    torch.testing.assert_close(out, right)
    assert launched == ["forward"]


@pytest.mark.parametrize(("rows", "inner", "columns"), [(0, 16, 2), (3, 16, 0), (2, 0, 2)])
def test_nothing_at_all(rows: int, inner: int, columns: int, device: str) -> None:
    x = torch.ones(rows, inner, device=device, requires_grad=True)
    weight = torch.ones(2 * columns, inner, device=device, requires_grad=True)
    bias = torch.ones(2 * columns, device=device, requires_grad=True)
    out = gated_linear(x, weight, bias, "relu", backend="triton")
    assert out.tolist() == [[1.0] * columns] * rows
    grads = torch.autograd.grad(out.sum(), (x, weight, bias))
    assert [g.shape for g in grads] == [x.shape, weight.shape, bias.shape]
    assert grads[2].tolist() == [float(rows)] * (2 * columns)


def test_when_it_is_one_kernel(
    device: str, launched: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By name wherever it can be; by itself from the data's number of rows on, if it has one."""
    monkeypatch.setattr(configs, "_gated_linear_rows", lambda keys: None)
    x, weight = torch.randn(4, 16, device=device), torch.randn(4, 16, device=device)
    assert apart_why(x, weight, None, "triton") is None
    with use_backend("triton"):
        assert apart_why(x, weight) is None
        gated_linear(x, weight, None, "gelu")
    assert "no matrix unit" in str(apart_why(x, weight))
    halves = x.bfloat16(), weight.bfloat16()
    assert "ask for 'triton'" in str(apart_why(*halves))
    monkeypatch.setattr(configs, "_gated_linear_rows", lambda keys: 4)
    assert apart_why(*halves) is None
    assert apart_why(halves[0][:3], halves[1]) == "3 rows are fewer than 4"
    learned = halves[1].clone().requires_grad_()
    assert "make the product again" in str(apart_why(halves[0], learned))
    with torch.no_grad():
        assert apart_why(halves[0], learned) is None
    assert apart_why(x, weight.half(), None, "triton") == (
        "x is torch.float32 and weight torch.float16"
    )
    assert apart_why(x[:, :9], weight[:, :9], None, "triton") == (
        "9 channels are no multiple of 16, so they would be read one by one"
    )
    assert apart_why(x.double(), weight.double()) == "it has no torch.float64 kernel"
    with torch.autocast(x.device.type, torch.bfloat16):
        assert apart_why(x, weight, None, "triton") == "autocast casts what the product multiplies"
        out = gated_linear(x, weight, None, "gelu", backend="triton")
    assert out.dtype == torch.bfloat16
    assert launched == ["linear_forward", "forward"]
    with pytest.raises(InputError, match="must share a dtype"):
        gated_linear(x, weight.half(), None, "gelu", backend="triton")


def test_the_rows_are_the_cards_number(monkeypatch: pytest.MonkeyPatch) -> None:
    table = {
        "default": {"gated_linear_rows": None}, "A Card": {"gated_linear_rows": 512}, "sm_90": {},
    }  # fmt: skip
    monkeypatch.setattr(configs, "table", lambda: table)
    find = configs._gated_linear_rows.__wrapped__
    assert find(("A Card", "sm_90", "default")) == 512
    assert find(("Another", "sm_90", "default")) is None
