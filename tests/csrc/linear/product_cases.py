"""What holds of float32 products on matrix units, by parts of bfloat16: run by emulated.py."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from contextlib import AbstractContextManager
from types import ModuleType
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pyenc.ops import ACTIVATIONS
from pyenc.ops.linear import bf16x6
from pyenc.ops.linear.reference import linear_reference
from tests.oracle import assert_right, margin

# M, N, K: around a tile, a panel of two, a step, a block of 16 steps, a thread's run of panels, a
# group of the other's and as many of those as are there at a time; and what has one of something.
SIZES = [
    (1, 1, 1), (15, 17, 31), (16, 16, 32), (33, 31, 33), (65, 130, 64), (31, 1, 513),
    (1, 129, 1030), (300, 5, 512), (40, 300, 511), (257, 64, 100), (33, 4200, 40),
]  # fmt: skip


def any_size() -> AbstractContextManager[object]:
    """Within, no product is too small for parts."""
    return mock.patch.object(bf16x6, "gains", return_value=True)


def made(m: int, n: int, k: int, turned: int) -> tuple[Tensor, Tensor]:
    """a (M, K) and b (K, N), each in one of two arrangements of memory."""
    a = torch.randn(k, m).t() if turned & 1 else torch.randn(m, k)
    b = torch.randn(n, k).t() if turned & 2 else torch.randn(k, n)
    return a, b


def product(a: Tensor, b: Tensor, bias: Tensor | None = None, activation: str = "") -> Tensor:
    """By parts, whatever the size; another's help shows."""
    helped = mock.Mock(side_effect=AssertionError("it was not served by parts"))
    with (
        any_size(),
        mock.patch.object(F, "linear", helped),
    ):
        return bf16x6.product(a, b, bias, activation)


def check(a: Tensor, b: Tensor, bias: Tensor | None = None, activation: str = "") -> None:
    given = (a, b.t(), bias)
    wide = [None if t is None else t.double() for t in given]
    naive, oracle = (linear_reference(*t, activation or None) for t in (given, wide))  # type: ignore[arg-type]
    got = product(a, b, bias, activation)
    assert got.is_contiguous()
    assert_right(got, naive, oracle, what=f"{tuple(a.shape)} {tuple(b.shape)} {activation}")


def sums(_: ModuleType) -> None:
    for size, turned in itertools.product(SIZES, range(4)):
        m, n, _k = size
        a, b = made(*size, turned)
        check(a, b)
        with margin(1.0 if m * n < 64 else 3.0):
            check(a, b, torch.randn(n))
    for activation in ACTIVATIONS:
        check(*made(50, 40, 70, 2), torch.randn(40), activation)
        check(*made(50, 40, 600, 2), None, activation)


def errors(_: ModuleType) -> None:
    """No more than a sum one by one in float32 is off, root mean square, also where nothing cancels
    and where most does."""
    for k, shift, turned in itertools.product((64, 700), (0.0, 3.0), range(4)):
        a, b = made(96, 96, k, turned)
        a, b = a + shift, b + shift
        exact = a.double() @ b.double()
        naive = torch.zeros(96, 96)
        for i in range(k):
            naive += a[:, i, None] * b[i]
        off, allowed = (
            (x.double() - exact).square().mean().sqrt().item() for x in (product(a, b), naive)
        )
        assert off <= 1.1 * allowed, (k, shift, turned, off, allowed)


def ranges(_: ModuleType) -> None:
    """Large and small numbers beside each other; rows and columns that are all of one size."""
    scales = torch.tensor([2.0**e for e in (-40, -25, -10, 0, 10, 25, 40)])
    a, b = torch.randn(7, 100) * scales[:, None], torch.randn(100, 7) / scales
    got, exact = product(a, b).double(), a.double() @ b.double()
    size = a.double().abs() @ b.double().abs()
    assert bool(((got - exact).abs() <= 2.0**-21 * size).all())
    zero = product(torch.zeros(33, 40), torch.randn(40, 33))
    assert torch.equal(zero, torch.zeros(33, 33))
    # As small as a row may be: its numbers' parts are whole, and count as those of others do.
    a = torch.randn(40, 70)
    a[3] *= 2.0**-70
    check_rows(a, torch.randn(70, 40))


def check_rows(a: Tensor, b: Tensor) -> None:
    off = (product(a, b).double() - a.double() @ b.double()).abs()
    assert bool((off <= 2.0**-21 * (a.double().abs() @ b.double().abs())).all())


def refuses(_: ModuleType) -> None:
    """What parts cannot say is torch's, to the bit, wherever in the operands it stands."""
    for value, (m, k) in itertools.product(
        (float("inf"), float("-inf"), float("nan")), ((0, 0), (39, 69), (17, 33))
    ):
        for which in range(2):
            a, b = made(40, 70, 70, 2)
            (a if which == 0 else b.t())[m, k] = value
            with any_size():
                got = bf16x6.product(a, b)
            assert torch.equal(got.isnan(), F.linear(a, b.t()).isnan())
            torch.testing.assert_close(got, F.linear(a, b.t()), rtol=0, atol=0, equal_nan=True)
    # Of one row or column alone; of both; a sum that only some orders bring past the largest float.
    a, b = torch.randn(40, 70), torch.randn(70, 50)
    for x, y in (
        (a.clone().index_fill_(0, torch.tensor([7]), 1e-30), b),
        (a, b.clone().index_fill_(1, torch.tensor([33]), -1e-36)),
        (a * 1e-15, b * 1e-15),
        (a * 1e20, b * 1e18),
        (a[:, :0], b[:0]), (a[:0], b), (a, b[:, :0]),
    ):  # fmt: skip
        for one, other in ((x, y), (x.t().contiguous().t(), y.t().contiguous().t())):
            with any_size():
                assert torch.equal(bf16x6.product(one, other), F.linear(one, other.t()))


def same_bits(_: ModuleType) -> None:
    """Of a row whatever stands beside it, and whoever computes it."""
    for size, turned in itertools.product(((700, 300, 130), (40, 520, 600)), range(4)):
        a, b = made(*size, turned)
        whole = product(a, b)
        assert torch.equal(product(a[33:38], b), whole[33:38])
        assert torch.equal(product(a, b[:, 3:200]), whole[:, 3:200])
        threads = torch.get_num_threads()
        try:
            for others in (2, 3, 5):
                torch.set_num_threads(others)
                assert torch.equal(product(a, b), whole)
        finally:
            torch.set_num_threads(threads)


def layouts(_: ModuleType) -> None:
    """Strides of no kind, a sign that is still to be changed, neighbours that are one number."""
    a, b = torch.randn(40, 2, 70)[:, 0], torch.randn(2, 33, 70)[1].t()
    check(a, b)
    check(torch.randn(70, 80)[:, ::2].t(), torch.randn(140, 33)[::2])
    check(torch.randn(80, 140)[::2, ::2], torch.randn(140, 66)[::2, ::2])
    check(torch.ones(1, 1).expand(40, 70), torch.randn(70, 33))
    negative = torch.randn(40, 70, dtype=torch.complex64).conj().imag
    assert negative.is_neg()
    exact = negative.double() @ b.double()
    assert_right(product(negative, b), exact.float(), exact)


def layer_gradients(
    layer: Callable[..., Tensor], dtype: torch.dtype, *given: Tensor
) -> tuple[Tensor, ...]:
    *leaves, target = (t.detach().to(dtype).requires_grad_() for t in given)
    return torch.autograd.grad((layer(*leaves, "gelu") * target).sum(), leaves)


def gradients(_: ModuleType) -> None:
    """A linear layer's, of what is wanted; a weight's lies as the weight."""
    for k, n in ((70, 40), (33, 130)):
        x, weight, bias = torch.randn(3, 33, k), nn.Parameter(torch.randn(n, k)), torch.randn(n)
        target = torch.randn(3, 33, n)

        given = (x, weight, bias, target)
        with any_size():
            got = layer_gradients(bf16x6.linear, torch.float32, *given)
        naive = layer_gradients(linear_reference, torch.float32, *given)
        oracle = layer_gradients(linear_reference, torch.float64, *given)
        assert got[1].is_contiguous()
        for each in zip(got, naive, oracle, strict=True):
            assert_right(*each, gradient=True)


def everything(module: ModuleType) -> None:
    for case in (sums, errors, ranges, refuses, same_bits, layouts, gradients):
        case(module)


CASES: dict[str, Callable[[ModuleType], None]] = {
    "product": everything,
    "product a little": lambda module: (sums(module), same_bits(module), layouts(module))[0],
}
