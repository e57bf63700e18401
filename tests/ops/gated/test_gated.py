"""The gated activation, alone and behind its linear layer, against its float64 oracle."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from pyenc.errors import InputError
from pyenc.ops import ACTIVATIONS, gated_activation, gated_linear
from tests.ops.elementwise import DTYPES, check


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
    ],
)
def test_bad_input_is_named(call: Callable[[], object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        call()


@pytest.mark.parametrize("backend", [None, "torch", "reference"])
def test_other_dtypes_than_x_are_named(backend: str | None) -> None:
    x, weight, bias = torch.ones(2, 3), torch.ones(4, 3), torch.ones(4)
    for other in ((weight.double(), bias), (weight, bias.half())):
        with pytest.raises(InputError, match=r"gated_linear: .* must share a dtype"):
            gated_linear(x, *other, "gelu", backend=backend)
        with torch.autocast("cpu", torch.bfloat16):
            assert gated_linear(x, weight, bias.half(), "gelu", backend=backend).shape == (2, 2)


@pytest.mark.parametrize("shape", [(3, 0), (2, 3, 0), (0, 5)])
@pytest.mark.parametrize("backend", ["reference", "torch"])
def test_no_channels_and_no_rows(shape: tuple[int, ...], backend: str) -> None:
    """A product over nothing is the bias."""
    x, weight = torch.ones(shape), torch.ones(4, shape[-1])
    out = gated_linear(x, weight, torch.tensor([1.0, 2.0, 3.0, 4.0]), "relu", backend=backend)
    assert out.shape == (*shape[:-1], 2)
    if shape[-1] == 0:
        assert out.reshape(-1, 2).tolist() == [[3.0, 8.0]] * (out.numel() // 2)


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("dims", [(None, 0), (0, None), (0, 0)])
def test_many_at_once(dims: tuple[int | None, int | None], grad: bool) -> None:
    """Of torch.func: one gate beside many values has no room for their products."""
    given = [torch.randn(3, 5) if dim is None else torch.randn(2, 3, 5) for dim in dims]
    with torch.set_grad_enabled(grad):
        got = torch.func.vmap(lambda g, v: gated_activation(g, v, "silu"), in_dims=dims)(*given)
    wanted = gated_activation(*torch.broadcast_tensors(*given), "silu")
    torch.testing.assert_close(got, wanted)
