"""What holds of float32 products on matrix units, by parts of bfloat16: run by emulated.py.

Each way is held to what it says: three parts to float32's own error, two to 2^-14 of a product.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from types import ModuleType
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pyenc.ops import ACTIVATIONS
from pyenc.ops.linear import product as products
from pyenc.ops.linear.reference import linear_reference
from tests.oracle import assert_right, margin

# M, N, K: around a tile, a panel of two, a step, a block of 16 steps, a thread's run of panels, a
# group of the other's and as many of those as are there at a time; and what has one of something.
SIZES = [
    (1, 1, 1), (15, 17, 31), (16, 16, 32), (33, 31, 33), (65, 130, 64), (31, 1, 513),
    (1, 129, 1030), (300, 5, 512), (40, 300, 511), (257, 64, 100), (33, 4200, 40),
]  # fmt: skip


OFF = {"bf16x6": 2.0**-21, "bf16x3": 2.0**-14}
"""Of the sum of a product's magnitudes, at the most."""


def made(m: int, n: int, k: int, turned: int) -> tuple[Tensor, Tensor]:
    """a (M, K) and b (K, N), each in one of two arrangements of memory."""
    a = torch.randn(k, m).t() if turned & 1 else torch.randn(m, k)
    b = torch.randn(n, k).t() if turned & 2 else torch.randn(k, n)
    return a, b


def product(
    way: str, a: Tensor, b: Tensor, bias: Tensor | None = None, activation: str = ""
) -> Tensor:
    """By parts, whatever the size; another's help shows."""
    helped = mock.Mock(side_effect=AssertionError("it was not served by parts"))
    with mock.patch.object(F, "linear", helped):
        return products.product(a, b, bias, activation, way)


def check(way: str, a: Tensor, b: Tensor, bias: Tensor | None = None, activation: str = "") -> None:
    given = (a, b.t(), bias)
    wide = [None if t is None else t.double() for t in given]
    naive, oracle = (linear_reference(*t, activation or None) for t in (given, wide))  # type: ignore[arg-type]
    got = product(way, a, b, bias, activation)
    assert got.is_contiguous()
    what = f"{tuple(a.shape)} {tuple(b.shape)} {activation}"
    if way == "bf16x6":
        assert_right(got, naive, oracle, what=what)
        return
    # No activation is steeper than 1.2.
    allowed = 1.2 * OFF[way] * (sizes(a, b) + (0.0 if bias is None else bias.abs()))
    assert bool(((got.double() - oracle).abs() <= allowed).all()), what


def sizes(a: Tensor, b: Tensor) -> Tensor:
    return a.double().abs() @ b.double().abs()


def sums(way: str) -> None:
    for size, turned in itertools.product(SIZES, range(4)):
        m, n, _k = size
        a, b = made(*size, turned)
        check(way, a, b)
        with margin(1.0 if m * n < 64 else 3.0):
            check(way, a, b, torch.randn(n))
    for activation in ACTIVATIONS:
        check(way, *made(50, 40, 70, 2), torch.randn(40), activation)
        check(way, *made(50, 40, 600, 2), None, activation)


def errors(way: str) -> None:
    """Root mean square, no more than a sum one by one in float32 is off; of two parts no more than
    a sixteenth of TF32's. Also where nothing cancels and where most does."""
    for k, shift, turned in itertools.product((64, 700), (0.0, 3.0), range(4)):
        a, b = made(96, 96, k, turned)
        a, b = a + shift, b + shift
        exact = a.double() @ b.double()
        got, naive = product(way, a, b), torch.zeros(96, 96)
        for i in range(k):
            naive += a[:, i, None] * b[i]
        rough = tf32(a).double() @ tf32(b).double()
        off, one_by_one, roughly = (
            (x.double() - exact).square().mean().sqrt().item() for x in (got, naive, rough)
        )
        allowed = 1.1 * one_by_one if way == "bf16x6" else roughly / 16 + one_by_one
        assert off <= allowed, (k, shift, turned, off, allowed)


def tf32(x: Tensor) -> Tensor:
    """To the nearest of ten bits behind the first."""
    mantissa, exponent = torch.frexp(x)
    return torch.ldexp((mantissa * 2048).round() / 2048, exponent)


def ranges(way: str) -> None:
    """Large and small numbers beside each other; rows and columns that are all of one size."""
    scales = torch.tensor([2.0**e for e in (-40, -25, -10, 0, 10, 25, 40)])
    within(way, torch.randn(7, 100) * scales[:, None], torch.randn(100, 7) / scales)
    zero = product(way, torch.zeros(33, 40), torch.randn(40, 33))
    assert torch.equal(zero, torch.zeros(33, 33))
    # As small as a row may be: its numbers' parts are whole, and count as those of others do.
    a = torch.randn(40, 70)
    a[3] *= 2.0**-70
    within(way, a, torch.randn(70, 40))
    # And as large.
    a[3:6] = torch.tensor([1.0, -1.0, 2.0**127 * (1 - 2.0**-20)])[:, None]
    within(way, a, torch.randn(70, 40) * 2.0**-40)


def within(way: str, a: Tensor, b: Tensor) -> None:
    off = (product(way, a, b).double() - a.double() @ b.double()).abs()
    assert bool((off <= OFF[way] * sizes(a, b)).all())


def refuses(way: str) -> None:
    """What parts cannot say is torch's, to the bit, wherever in the operands it stands."""
    for value, (m, k) in itertools.product(
        (float("inf"), float("-inf"), float("nan")), ((0, 0), (39, 69), (17, 33))
    ):
        for which in range(2):
            a, b = made(40, 70, 70, 2)
            (a if which == 0 else b.t())[m, k] = value
            got = products.product(a, b, way=way)
            assert torch.equal(got.isnan(), F.linear(a, b.t()).isnan())
            torch.testing.assert_close(got, F.linear(a, b.t()), rtol=0, atol=0, equal_nan=True)
    # Of one row or column alone; of both; a sum that only some orders bring past the largest float;
    # a number whose part would be.
    a, b = torch.randn(40, 70), torch.randn(70, 50)
    for x, y in (
        (a.clone().index_fill_(0, torch.tensor([7]), 1e-30), b),
        (a, b.clone().index_fill_(1, torch.tensor([33]), -1e-36)),
        (a * 1e-15, b * 1e-15),
        (a * 1e20, b * 1e18),
        (a.clone().index_fill_(0, torch.tensor([7]), 3.4e38), b * 1e-12),
        (a * 1e-12, b.clone().index_fill_(1, torch.tensor([33]), -3.4e38)),
        (a[:, :0], b[:0]), (a[:0], b), (a, b[:, :0]),
    ):  # fmt: skip
        for one, other in ((x, y), (x.t().contiguous().t(), y.t().contiguous().t())):
            assert torch.equal(products.product(one, other, way=way), F.linear(one, other.t()))


def same_bits(way: str) -> None:
    """Of a row whatever stands beside it, and whoever computes it."""
    for size, turned in itertools.product(((700, 300, 130), (40, 520, 600)), range(4)):
        a, b = made(*size, turned)
        whole = product(way, a, b)
        assert torch.equal(product(way, a[33:38], b), whole[33:38])
        assert torch.equal(product(way, a, b[:, 3:200]), whole[:, 3:200])
        threads = torch.get_num_threads()
        try:
            for others in (2, 3, 5):
                torch.set_num_threads(others)
                assert torch.equal(product(way, a, b), whole)
        finally:
            torch.set_num_threads(threads)


def layouts(way: str) -> None:
    """Strides of no kind, a sign that is still to be changed, neighbours that are one number."""
    a, b = torch.randn(40, 2, 70)[:, 0], torch.randn(2, 33, 70)[1].t()
    check(way, a, b)
    check(way, torch.randn(70, 80)[:, ::2].t(), torch.randn(140, 33)[::2])
    check(way, torch.randn(80, 140)[::2, ::2], torch.randn(140, 66)[::2, ::2])
    check(way, torch.ones(1, 1).expand(40, 70), torch.randn(70, 33))
    negative = torch.randn(40, 70, dtype=torch.complex64).conj().imag
    assert negative.is_neg()
    within(way, negative, b)


def layer_gradients(
    layer: Callable[..., Tensor], dtype: torch.dtype, *given: Tensor
) -> tuple[Tensor, ...]:
    *leaves, target = (t.detach().to(dtype).requires_grad_() for t in given)
    return torch.autograd.grad((layer(*leaves, "gelu") * target).sum(), leaves)


def gradients(way: str) -> None:
    """A linear layer's, of what is wanted; a weight's lies as the weight."""
    for k, n in ((70, 40), (33, 130)):
        x, weight, bias = torch.randn(3, 33, k), nn.Parameter(torch.randn(n, k)), torch.randn(n)
        target = torch.randn(3, 33, n)

        def layer(*given: Tensor) -> Tensor:
            return products.linear(*given, way=way)

        given = (x, weight, bias, target)
        got = layer_gradients(layer, torch.float32, *given)
        naive = layer_gradients(linear_reference, torch.float32, *given)
        oracle = layer_gradients(linear_reference, torch.float64, *given)
        assert got[1].is_contiguous()
        for one, plain, exact in zip(got, naive, oracle, strict=True):
            if way == "bf16x6":
                assert_right(one, plain, exact, gradient=True)
            else:
                assert float((one.double() - exact).norm() / exact.norm()) <= OFF[way]


def every_way(*cases: Callable[[str], None]) -> Callable[[ModuleType], None]:
    def run(_: ModuleType) -> None:
        for way, case in itertools.product(OFF, cases):
            case(way)

    return run


CASES: dict[str, Callable[[ModuleType], None]] = {
    "product": every_way(sums, errors, ranges, refuses, same_bits, layouts, gradients),
    "product a little": every_way(sums, layouts),
}
