"""The C++ kernels of gated activation, norms and rotary against their float64 oracles.

Run as a script, this file checks the kernels of the instruction set that PYENC_CPU_ISA names.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pyenc.ops import ACTIVATIONS, add_layer_norm, add_rms_norm, extension, gated_activation, rotary
from tests.instruction_sets import ISAS, run_on
from tests.oracle import assert_right
from tests.seeds import seed

pytestmark = pytest.mark.skipif(extension.load() is None, reason=extension.why_missing())

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
# Around the widths of the vectors (4, 8, 16), and what a model has.
WIDTHS = [1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 33, 64, 100, 257, 768]
HALVES = [1, 2, 3, 8, 15, 16, 17, 20, 32, 64, 128]


def compare(
    op: Callable[..., Any], tensors: list[Tensor], dtype: torch.dtype, backend: str = "cpu"
) -> None:
    """Results and gradients of `op(backend, *tensors)`: the kernel, naive, and in float64."""
    results = []
    # torch: the plain form written for each of the dtypes; the reference overflows in float16.
    for name, working in ((backend, dtype), ("torch", dtype), ("reference", torch.float64)):
        leaves = [t.to(dtype).to(working).requires_grad_() for t in tensors]
        outs = op(name, *leaves)
        outs = outs if isinstance(outs, tuple) else (outs,)
        generator = torch.Generator().manual_seed(3)
        grads = [torch.randn(o.shape, generator=generator).to(dtype).to(o.dtype) for o in outs]
        results.append((outs, torch.autograd.grad(outs, leaves, grads)))
    for i, three in enumerate(zip(*(r[0] for r in results), strict=True)):
        assert_right(*(x.detach() for x in three), what=f"result {i}")
    for i, three in enumerate(zip(*(r[1] for r in results), strict=True)):
        assert_right(*three, gradient=True, what=f"gradient {i}")


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


def check_norm(
    rows: int,
    width: int,
    dtype: torch.dtype,
    *,
    rms: bool,
    residual: bool = True,
    bias: bool = True,
) -> None:
    def op(backend: str, x: Tensor, weight: Tensor, *more: Tensor) -> tuple[Tensor, Tensor]:
        rest = list(more)
        other = rest.pop() if residual else None
        if rms:
            return add_rms_norm(x, other, weight, 1e-6, backend=backend)
        offset = rest.pop() if bias else None
        return add_layer_norm(x, other, weight, offset, 1e-12, backend=backend)

    tensors = [torch.randn(rows, width) * 2 + 3, torch.randn(width)]
    tensors += [torch.randn(width)] if bias and not rms else []
    tensors += [torch.randn(rows, width)] if residual else []
    compare(op, tensors, dtype)


def tables(positions: int, half: int) -> tuple[Tensor, Tensor]:
    angle = torch.arange(positions)[:, None] * 10000.0 ** -(torch.arange(half) / half)
    return angle.cos(), angle.sin()


def check_rotary(tokens: int, heads: int, half: int, dtype: torch.dtype) -> None:
    cos, sin = tables(50, half)
    positions = torch.randint(0, 50, (tokens,))

    def op(backend: str, x: Tensor) -> Tensor:
        return rotary(x, cos, sin, positions, backend=backend)

    compare(op, [torch.randn(tokens, heads, 2 * half)], dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_gated(activation: str, dtype: torch.dtype) -> None:
    for i, width in enumerate(WIDTHS):
        check_gated(1 + i % 4, width, activation, dtype)
        check_halves(1 + i % 3, width, activation, i % 2 == 0, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_layer_norm(dtype: torch.dtype) -> None:
    # A single column has no variance: its norm is the bias, and its gradient all cancellation.
    for i, width in enumerate(WIDTHS[2:]):
        check_norm(1 + i % 70, width, dtype, rms=False)
        check_norm(3, width, dtype, rms=False, residual=False, bias=False)
    check_norm(200, 40, dtype, rms=False)


@pytest.mark.parametrize("dtype", DTYPES)
def test_rms_norm(dtype: torch.dtype) -> None:
    for i, width in enumerate(WIDTHS):
        check_norm(1 + i % 70, width, dtype, rms=True)
        check_norm(3, width, dtype, rms=True, residual=False)
    check_norm(200, 40, dtype, rms=True)


@pytest.mark.parametrize("dtype", DTYPES)
def test_rotary(dtype: torch.dtype) -> None:
    for i, half in enumerate(HALVES):
        check_rotary(1 + i * 3 % 7, 1 + i % 3, half, dtype)


@settings(max_examples=40, deadline=None)
@given(
    rows=st.integers(0, 130), width=st.integers(1, 70), dtype=st.sampled_from(DTYPES),
    activation=st.sampled_from(ACTIVATIONS), rms=st.booleans(),
)  # fmt: skip
def test_any_shape(rows: int, width: int, dtype: torch.dtype, activation: str, rms: bool) -> None:
    torch.manual_seed(rows * 100 + width)
    check_halves(rows, width, activation, rms, dtype)
    check_norm(rows, width + 2, dtype, rms=rms)
    check_rotary(rows, 2, width, dtype)


def test_nothing_at_all() -> None:
    """No rows, no columns, a single number."""
    for shape in ((0, 5), (5, 0), (2, 0, 3), ()):
        gate = torch.randn(shape, requires_grad=True)
        out = gated_activation(gate, gate.detach(), "silu", backend="cpu")
        assert out.shape == gate.shape
        out.sum().backward()
        assert gate.grad is not None
    weight = torch.ones(3, requires_grad=True)
    normed, total = add_layer_norm(torch.empty(0, 3), None, weight, None, 1e-5, backend="cpu")
    assert normed.shape == total.shape == (0, 3)
    normed.sum().backward()
    assert weight.grad is not None
    assert weight.grad.tolist() == [0, 0, 0]


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
    weight = torch.randn(40)
    apart = add_rms_norm(base, None, weight, 1e-6, backend="cpu")[0]
    dense = add_rms_norm(base.contiguous().view(-1, 40), None, weight, 1e-6, backend="cpu")[0]
    assert torch.equal(apart.reshape(-1, 40), dense)
    # The q of a packed product; the gradient of a sum is one number seen from everywhere.
    qkv = torch.randn(9, 3, 2, 16, requires_grad=True)
    cos, sin = tables(9, 8)
    q = rotary(qkv[:, 0], cos, sin, torch.arange(9), backend="cpu")
    again = rotary(qkv[:, 0].contiguous(), cos, sin, torch.arange(9).int(), backend="cpu")
    assert torch.equal(q, again)
    (grad,) = torch.autograd.grad(q.sum(), qkv)
    expected = rotary(torch.ones(9, 2, 16), cos, -sin, torch.arange(9), backend="reference")
    torch.testing.assert_close(grad[:, 0], expected)
    assert not grad[:, 1:].any()


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
    """Within what csrc/gated/activation.h says of itself, not only of 1."""
    x = torch.linspace(-12.5, 12.5, 400_001)
    got = gated_activation(x, torch.ones_like(x), "gelu", backend="cpu").double()
    exact = x.double() * torch.special.log_ndtr(x.double()).exp()
    assert ((got - exact).abs() <= exact.abs() * (5e-7 + 2e-7 * x.double() ** 2)).all()


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


def test_norms_of_hard_rows() -> None:
    """A mean far above the spread, equal numbers, zeros, huge and tiny ones."""
    rows = torch.stack(
        [
            torch.randn(300) + 1e4, torch.full((300,), 7.5), torch.zeros(300),
            torch.randn(300) * 1e15, torch.randn(300) * 1e-15, torch.eye(300)[0] * 1e6,
        ]
    )  # fmt: skip
    weight, bias = torch.randn(300), torch.randn(300)
    for eps in (1e-12, 1e-5):
        got, naive, oracle = (
            add_layer_norm(
                rows.to(dtype), None, weight.to(dtype), bias.to(dtype), eps, backend=backend
            )[0]
            for backend, dtype in (
                ("cpu", torch.float32), ("reference", torch.float32), ("reference", torch.float64)
            )
        )  # fmt: skip
        for row in range(len(rows)):
            assert_right(got[row], naive[row], oracle[row], what=f"row {row}, eps {eps}")
    nan = rows.clone()
    nan[1, 7] = torch.nan
    out = add_layer_norm(nan, None, weight, bias, 1e-5, backend="cpu")[0]
    assert out[1].isnan().all()
    assert out[[0, 2, 3, 4, 5]].isfinite().all()


def test_the_same_bits_with_any_number_of_threads_and_every_time() -> None:
    x, other = torch.randn(2000, 130), torch.randn(2000, 130)
    weight = torch.randn(130)
    cos, sin = tables(2000, 65)

    def everything() -> list[Tensor]:
        a, b = (t.detach().requires_grad_() for t in (x, other))
        w = weight.detach().requires_grad_()
        outs = [
            gated_activation(a, b, "gelu", backend="cpu"),
            *add_layer_norm(a, b, w, w, 1e-5, backend="cpu"),
            *add_rms_norm(a, b, w, 1e-5, backend="cpu"),
            rotary(a[:, None], cos, sin, torch.arange(2000), backend="cpu"),
        ]
        return [*outs, *torch.autograd.grad([o.square().sum() for o in outs], [a, b, w])]

    before = torch.get_num_threads()
    try:
        runs = []
        for threads in (1, 2, 3, 8, 2):
            torch.set_num_threads(threads)
            runs.append(everything())
    finally:
        torch.set_num_threads(before)
    for run in runs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(runs[0], run, strict=True))


def test_opcheck() -> None:
    def leaf(*shape: int) -> Tensor:
        return torch.randn(shape, requires_grad=True)

    check = torch.library.opcheck
    check(torch.ops.pyenc.gated_activation.default, (leaf(3, 4, 5), leaf(3, 4, 5), "gelu", "cpu"))
    for gate_first in (True, False):
        check(torch.ops.pyenc.gated_halves.default, (leaf(3, 10), "silu", gate_first, "cpu"))
    for residual, bias, rms in itertools.product(
        (leaf(3, 6), None), (leaf(6), None), (True, False)
    ):
        arguments = (leaf(3, 6), residual, leaf(6), bias, 1e-5, rms)
        check(torch.ops.pyenc.add_norm_cpu.default, arguments)
    cos, sin = tables(9, 4)
    for back in (True, False):
        check(torch.ops.pyenc.rotary_cpu.default, (leaf(9, 2, 8), cos, sin, torch.arange(9), back))


def test_parameters_of_another_dtype_keep_it_in_their_gradients() -> None:
    x = torch.randn(5, 8, dtype=torch.bfloat16, requires_grad=True)
    weight = torch.randn(8, dtype=torch.float16, requires_grad=True)
    normed, _ = add_layer_norm(x, None, weight, None, 1e-5, backend="cpu")
    assert normed.dtype == torch.bfloat16
    grads = torch.autograd.grad(normed.float().sum(), [x, weight])
    assert [g.dtype for g in grads] == [torch.bfloat16, torch.float16]


@pytest.mark.parametrize("isa", ISAS)
def test_each_instruction_set(isa: str) -> None:
    run_on(isa, __file__)


def main() -> None:
    """A little of everything above."""
    torch.manual_seed(seed(1))
    torch.set_num_threads(1)
    for (i, width), dtype in itertools.product(enumerate(WIDTHS[3:]), DTYPES):
        check_gated(3, width, ACTIVATIONS[i % 4], dtype)
        check_halves(3, width, ACTIVATIONS[(i + 1) % 4], i % 2 == 0, dtype)
        check_norm(70, width, dtype, rms=i % 2 == 0)
        check_rotary(5, 2, width, dtype)
    test_the_activations_far_out_and_where_nothing_is_a_number()
    test_gelu_is_exact_also_where_it_is_tiny()
    test_half_precision_is_rounded_once_and_to_even()
    test_norms_of_hard_rows()
    print(extension.isa())


if __name__ == "__main__":
    main()
