"""Gated activations, normalisations and rotary, against their float64 oracles."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from pyenc.errors import InputError
from pyenc.ops import (
    ACTIVATIONS,
    add_layer_norm,
    add_rms_norm,
    gated_activation,
    gated_linear,
    rotary,
)
from tests.oracle import assert_right, naively

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]


def check(op: Callable[..., Any], dtype: torch.dtype, tensors: list[Tensor], *rest: object) -> None:
    """Outputs and gradients of `op(*tensors, *rest)`: the backend in `dtype` against the oracle."""
    tensors = [t.to(dtype) for t in tensors]
    results = []
    for backend, working in ((None, dtype), ("reference", dtype), ("reference", torch.float64)):
        leaves = [t.detach().to(working).requires_grad_() for t in tensors]
        with naively():
            outs = op(*leaves, *rest, backend=backend)
        outs = list(outs) if isinstance(outs, tuple) else [outs]
        generator = torch.Generator().manual_seed(3)
        grads = [torch.randn(o.shape, generator=generator).to(o.dtype) for o in outs]
        results.append([o.detach() for o in outs] + list(torch.autograd.grad(outs, leaves, grads)))
    for i, parts in enumerate(zip(*results, strict=True)):
        assert_right(*parts, gradient=i >= len(outs), what=f"result {i}")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_gated_activation(activation: str, dtype: torch.dtype) -> None:
    check(gated_activation, dtype, [torch.randn(7, 33) * 3, torch.randn(7, 33)], activation)


def test_gated_activation_without_gradient_leaves_its_inputs_alone() -> None:
    gate, value = torch.randn(5, 8), torch.randn(5, 8)
    before = gate.clone(), value.clone()
    with torch.no_grad():
        out = gated_activation(gate, value, "relu")
        same = gated_activation(gate, gate, "gelu")
    assert torch.equal(gate, before[0])
    assert torch.equal(value, before[1])
    torch.testing.assert_close(out, gate.relu() * value)
    torch.testing.assert_close(same, torch.nn.functional.gelu(gate) * gate)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("gate_first", [True, False])
def test_gated_linear(gate_first: bool, dtype: torch.dtype) -> None:
    x, weight, bias = torch.randn(9, 20), torch.randn(26, 20) / 4, torch.randn(26)
    check(gated_linear, dtype, [x, weight, bias], "gelu", gate_first)


def test_exact_gelu_is_not_its_approximation() -> None:
    x, one = torch.linspace(-4, 4, 1001, dtype=torch.float64), torch.ones(1001, dtype=torch.float64)
    exact, tanh = (gated_activation(x, one, name) for name in ("gelu", "gelu_tanh"))
    assert 1e-4 < (exact - tanh).abs().max() < 1e-3


@pytest.mark.parametrize("dtype", DTYPES)
def test_add_layer_norm(dtype: torch.dtype) -> None:
    tensors = [torch.randn(6, 40) * 5 + 2, torch.randn(6, 40), torch.randn(40), torch.randn(40)]
    check(add_layer_norm, dtype, tensors, 1e-12)


@pytest.mark.parametrize("dtype", DTYPES)
def test_add_rms_norm(dtype: torch.dtype) -> None:
    check(add_rms_norm, dtype, [torch.randn(6, 40), torch.randn(6, 40), torch.randn(40)], 1e-6)


def test_norms_without_residual() -> None:
    x, weight = torch.randn(3, 10), torch.randn(10)
    normed, total = add_layer_norm(x, None, weight, None, 1e-5)
    assert torch.equal(total, x)
    torch.testing.assert_close(normed, torch.nn.functional.layer_norm(x, (10,), weight, None, 1e-5))
    assert torch.equal(add_rms_norm(x, None, weight, 1e-6)[1], x)


def tables(positions: int, dim: int) -> tuple[Tensor, Tensor]:
    angle = torch.arange(positions)[:, None] * 10000.0 ** -(torch.arange(dim // 2) * 2 / dim)
    return angle.cos(), angle.sin()


@pytest.mark.parametrize("dtype", DTYPES)
def test_rotary(dtype: torch.dtype) -> None:
    cos, sin = tables(50, 16)
    positions = torch.tensor([0, 1, 49, 7, 7])

    def turned(x: Tensor, backend: str | None) -> Tensor:
        return rotary(x, cos, sin, positions, backend=backend)

    check(turned, dtype, [torch.randn(5, 3, 16)])


def test_rotary_keeps_lengths_and_depends_on_differences() -> None:
    cos, sin = tables(64, 8)
    q, k = torch.randn(1, 1, 8), torch.randn(1, 1, 8)

    def score(i: int, j: int) -> float:
        a, b = (rotary(x, cos, sin, torch.tensor([p])) for x, p in ((q, i), (k, j)))
        return float((a * b).sum())

    assert score(3, 10) == pytest.approx(score(40, 47), abs=1e-5)
    torch.testing.assert_close(rotary(q, cos, sin, torch.tensor([9])).norm(), q.norm())


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: gated_activation(torch.ones(2), torch.ones(3), "gelu"), "agree in shape"),
        (lambda: gated_activation(torch.ones(2), torch.ones(2), "elu"), "unknown activation 'elu'"),
        (lambda: gated_activation(torch.ones(2).long(), torch.ones(2), "gelu"), "gate must be fl"),
        (lambda: gated_linear(torch.ones(2, 3), torch.ones(4, 2), None, "gelu"), r"\(2F, C\)"),
        (lambda: gated_linear(torch.ones(2, 3), torch.ones(5, 3), None, "gelu"), r"\(2F, C\)"),
        (
            lambda: gated_linear(torch.ones(2, 3), torch.ones(4, 3), torch.ones(2), "gelu"),
            r"bias must be \(4,\)",
        ),
        (lambda: add_layer_norm(torch.ones(2, 3), None, torch.ones(2), None, 1e-5), "weight must"),
        (
            lambda: add_rms_norm(torch.ones(2, 3), torch.ones(3), torch.ones(3), 1e-5),
            "residual must be as x",
        ),
        (
            lambda: rotary(torch.ones(2, 1, 8), *tables(4, 8), torch.tensor([0, 4])),
            "positions run from 0 to 4, the tables from 0 to 3",
        ),
        (lambda: rotary(torch.ones(2, 1, 7), *tables(4, 8), torch.tensor([0, 1])), "D even"),
        (lambda: rotary(torch.ones(2, 1, 6), *tables(4, 8), torch.tensor([0, 1])), r"\(P, 3\)"),
        (lambda: rotary(torch.ones(2, 1, 8), *tables(4, 8), torch.tensor([0.0, 1])), "int32 or"),
    ],
)
def test_bad_input_is_named(call: Callable[[], object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        call()
