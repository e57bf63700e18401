"""The C++ kernels of the gated activation against their float64 oracle."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pyenc.ops import ACTIVATIONS, extension, gated_activation
from tests.ops.elementwise import CPU_DTYPES as DTYPES
from tests.ops.elementwise import WIDTHS, compare, leaf, same_with_any_number_of_threads

pytestmark = pytest.mark.skipif(extension.load() is None, reason=extension.why_missing())


def check_gated(rows: int, width: int, activation: str, dtype: torch.dtype) -> None:
    tensors = [torch.randn(rows, width) * 3, torch.randn(rows, width)]
    compare(lambda b, g, v: gated_activation(g, v, activation, backend=b), tensors, dtype)


def check_halves(
    rows: int, width: int, activation: str, gate_first: bool, dtype: torch.dtype
) -> None:
    """The op that reads both halves of one tensor where they are."""

    def op(backend: str, x: Tensor) -> Tensor:
        if backend == "cpu":
            return torch.ops.pyenc.gated_halves(x, activation, gate_first, backend)  # type: ignore[no-any-return]
        gate, value = x.chunk(2, -1)[:: 1 if gate_first else -1]
        return gated_activation(gate, value, activation, backend=backend)

    compare(op, [torch.randn(rows, 2 * width) * 3], dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_gated(activation: str, dtype: torch.dtype) -> None:
    for i, width in enumerate(WIDTHS):
        check_gated(1 + i % 4, width, activation, dtype)
        check_halves(1 + i % 3, width, activation, i % 2 == 0, dtype)


@settings(max_examples=40, deadline=None)
@given(
    rows=st.integers(0, 130), width=st.integers(1, 70), dtype=st.sampled_from(DTYPES),
    activation=st.sampled_from(ACTIVATIONS), first=st.booleans(),
)  # fmt: skip
def test_any_shape(rows: int, width: int, dtype: torch.dtype, activation: str, first: bool) -> None:
    torch.manual_seed(rows * 100 + width)
    check_halves(rows, width, activation, first, dtype)


def test_nothing_at_all() -> None:
    """No rows, no columns, a single number."""
    for shape in ((0, 5), (5, 0), (2, 0, 3), ()):
        gate = torch.randn(shape, requires_grad=True)
        out = gated_activation(gate, gate.detach(), "silu", backend="cpu")
        assert out.shape == gate.shape
        out.sum().backward()
        assert gate.grad is not None


def test_leading_axes_and_strides_change_nothing() -> None:
    base = torch.randn(6, 5, 40).transpose(0, 1)
    gate, value = base[..., :17], base[..., 20:37]
    for activation in ACTIVATIONS:
        got = gated_activation(gate, value, activation, backend="cpu")
        flat = (gate.contiguous().view(-1, 17), value.contiguous().view(-1, 17))
        assert torch.equal(got.reshape(-1, 17), gated_activation(*flat, activation, backend="cpu"))
    spread = torch.randn(4, 34)[:, ::2]
    assert torch.equal(
        gated_activation(spread, spread, "relu", backend="cpu"), spread.relu() * spread
    )


def test_the_activations_far_out_and_where_nothing_is_a_number() -> None:
    x = torch.tensor([-torch.inf, -1e30, -200.0, -30.0, -13.0, -0.0, 0.0, 13.0, 200.0, 1e19])
    one = torch.ones_like(x)
    for activation in ACTIVATIONS:
        far = x[1:].requires_grad_()
        got = gated_activation(far, one[1:], activation, backend="cpu")
        exact = gated_activation(far.double(), one[1:].double(), activation, backend="reference")
        torch.testing.assert_close(got.double(), exact, rtol=1e-5, atol=1e-30)
        (slope,) = torch.autograd.grad(got.sum(), far)
        assert slope[:2].abs().max() < 1e-20
        assert slope[-2:].tolist() == pytest.approx([1, 1])
        nan = torch.full((9,), torch.nan)
        assert gated_activation(nan, torch.ones(9), activation, backend="cpu").isnan().all()
        assert gated_activation(torch.ones(9), nan, activation, backend="cpu").isnan().all()
        assert (
            gated_activation(torch.tensor([torch.inf]), one[:1], activation, backend="cpu") > 1e30
        )


def test_gelu_is_exact_also_where_it_is_tiny() -> None:
    """Within what csrc/shared/activation.h says of itself, not only of 1."""
    x = torch.linspace(-12.5, 12.5, 400_001)
    got = gated_activation(x, torch.ones_like(x), "gelu", backend="cpu").double()
    exact = x.double() * torch.special.log_ndtr(x.double()).exp()
    assert ((got - exact).abs() <= exact.abs() * (5e-7 + 2e-7 * x.double() ** 2)).all()


def test_gelu_of_halves_is_as_exact_as_it_says() -> None:
    """Of every number: its rounding, 2^-16.8 of itself above -5.6, and x 1e-13 (activation.h)."""
    every = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16)
    for dtype, digits in ((torch.bfloat16, 8), (torch.float16, 11)):
        x = every.view(dtype)
        x = x[x.isfinite()]
        got = gated_activation(x, torch.ones_like(x), "gelu", backend="cpu").double()
        wide = x.double()
        exact = wide * 0.5 * torch.erfc(-wide / math.sqrt(2))
        least = torch.finfo(dtype).smallest_normal * 2.0 ** (1 - digits)  # between subnormals
        share = torch.where(wide > -5.6, 2.0**-16.8, 0) + 2.0**-digits
        allowed = exact.abs() * share * 1.01 + wide.abs() * 1.2e-13 + least
        assert ((got - exact).abs() <= allowed).all()


def test_half_precision_is_rounded_once_and_to_even() -> None:
    # relu(x) * 1 is x: what comes back is what was put in, whatever its bits.
    every = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16)
    for dtype in (torch.bfloat16, torch.float16):
        x = every.view(dtype)
        x = x[x.isfinite()]
        out = gated_activation(x.abs(), torch.ones_like(x).copysign(x), "relu", backend="cpu")
        assert torch.equal(out.view(torch.int16), x.view(torch.int16))
        # A product with 1 + 2^-7 or so lands on every kind of tie.
        one = torch.full_like(x, 1 + 2.0**-7)
        exact = (x.abs().float() * one.float()).to(dtype)
        assert torch.equal(gated_activation(x.abs(), one, "relu", backend="cpu"), exact)


def test_the_same_bits_with_any_number_of_threads_and_every_time() -> None:
    gate, value = torch.randn(2000, 130), torch.randn(2000, 130)

    def run() -> list[Tensor]:
        a, b = (t.detach().requires_grad_() for t in (gate, value))
        out = gated_activation(a, b, "gelu", backend="cpu")
        return [out, *torch.autograd.grad(out.square().sum(), [a, b])]

    same_with_any_number_of_threads(run)


def test_opcheck() -> None:
    check = torch.library.opcheck
    check(torch.ops.pyenc.gated_activation.default, (leaf(3, 4, 5), leaf(3, 4, 5), "gelu", "cpu"))
    for gate_first in (True, False):
        check(torch.ops.pyenc.gated_halves.default, (leaf(3, 10), "silu", gate_first, "cpu"))


def main() -> None:
    """A little of everything above, for tests/ops/test_instruction_sets.py."""
    for (i, width), dtype in itertools.product(enumerate(WIDTHS[3:]), DTYPES):
        check_gated(3, width, ACTIVATIONS[i % 4], dtype)
        check_halves(3, width, ACTIVATIONS[(i + 1) % 4], i % 2 == 0, dtype)
    test_the_activations_far_out_and_where_nothing_is_a_number()
    test_gelu_is_exact_also_where_it_is_tiny()
    test_gelu_of_halves_is_as_exact_as_it_says()
    test_half_precision_is_rounded_once_and_to_even()
