"""What holds of bfloat16 products on matrix units, with a pack and without: run by emulated.py."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from types import ModuleType
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pyenc.ops import ACTIVATIONS
from pyenc.ops.linear import amx
from pyenc.ops.linear import product as products
from pyenc.ops.linear.reference import linear_reference
from tests.csrc.linear.product_cases import layer_gradients
from tests.oracle import assert_right

# M, N, K: around a tile, a panel of two, a step, all steps that are taken at once and a block of
# them, a run of panels and a group of the other's; and what has one of something.
SIZES = [
    (1, 1, 1), (15, 17, 31), (16, 16, 32), (17, 33, 33), (33, 31, 64), (65, 130, 65),
    (31, 1, 513), (1, 129, 1030), (300, 5, 96), (33, 40, 1536), (33, 40, 1537), (70, 70, 2400),
    (530, 64, 40), (40, 2100, 40), (3, 600, 1600),
]  # fmt: skip

HALF = torch.bfloat16


def made(m: int, n: int, k: int, turned: int) -> tuple[Tensor, Tensor]:
    """a (M, K) and b (K, N), each in one of two arrangements of memory."""
    a = torch.randn(k, m, dtype=HALF).t() if turned & 1 else torch.randn(m, k, dtype=HALF)
    b = torch.randn(n, k, dtype=HALF).t() if turned & 2 else torch.randn(k, n, dtype=HALF)
    return a, b


def product(a: Tensor, b: Tensor, bias: Tensor | None = None, activation: str = "") -> Tensor:
    """With a pack and without, which is the same; another's help shows."""
    helped = mock.Mock(side_effect=AssertionError("it was not served on matrix units"))
    with mock.patch.object(F, "linear", helped):
        got = products.product(a, b, bias, activation, amx.WAY)
    packed = amx.run(a, b.t(), amx.pack(b.t()), bias, activation)
    torch.testing.assert_close(packed, got, rtol=0, atol=0, equal_nan=True)
    return got


def check(a: Tensor, b: Tensor, bias: Tensor | None = None, activation: str = "") -> None:
    given = (a, b.t(), bias)
    wide = [None if t is None else t.double() for t in given]
    naive, oracle = (linear_reference(*t, activation or None) for t in (given, wide))  # type: ignore[arg-type]
    got = product(a, b, bias, activation)
    assert got.is_contiguous()
    assert_right(got, naive, oracle, what=f"{tuple(a.shape)} {tuple(b.shape)} {activation}")


def sums() -> None:
    for size, turned in itertools.product(SIZES, range(4)):
        a, b = made(*size, turned)
        check(a, b)
        check(a, b, torch.randn(size[1], dtype=HALF))
    for activation, k in itertools.product(ACTIVATIONS, (70, 1600)):
        check(*made(50, 40, k, 2), torch.randn(40, dtype=HALF), activation)
        check(*made(50, 70, k, 2), None, activation)


def rounded_once() -> None:
    """Sums are in float32 whatever the depth, and rounded after the activation."""
    for k in (64, 700, 3000):
        a, b = made(96, 96, k, 2)
        bias = torch.randn(96, dtype=HALF)
        exact = a.double() @ b.double() + bias.double()
        off = (product(a, b, bias).double() - exact).abs()
        assert bool((off <= 2.0**-8 * 1.001 * exact.abs() + 2.0**-17 * k**0.5).all()), k
        exact = F.gelu(exact)
        off = (product(a, b, bias, "gelu").double() - exact).abs()
        assert bool((off <= 2.0**-8 * 1.02 * exact.abs() + 2.0**-17 * k**0.5).all()), k


def own_numbers_alone() -> None:
    """What is infinite or no number stays in its row or column, whatever stands in for the lines
    and numbers that a panel lacks; a number that is subnormal counts as zero."""
    for value, (m, k), which in itertools.product(
        (float("inf"), float("-inf"), float("nan")), ((0, 0), (39, 69), (17, 33)), range(2)
    ):
        a, b = made(40, 45, 70, 2)
        (a if which == 0 else b.t())[m, k] = value
        exact = a.double() @ b.double()
        got = product(a, b).double()
        assert torch.equal(got.isnan(), exact.isnan())
        far = exact.isinf()
        assert bool(far.any()) == (value == value)
        assert torch.equal(got[far], exact[far])
        others = exact.isfinite()
        torch.testing.assert_close(got[others], exact[others], rtol=0.01, atol=0.1)
    small = torch.full((40, 70), 2.0**-130, dtype=HALF)
    got = product(small, torch.ones(70, 33, dtype=HALF))
    assert float(got.abs().max()) <= 70 * 2.0**-130
    large = torch.full((33, 2), 2.0**127, dtype=HALF)
    assert bool((product(large, torch.ones(2, 33, dtype=HALF)) == float("inf")).all())
    zero = product(torch.zeros(33, 40, dtype=HALF), torch.randn(40, 33, dtype=HALF), None, "gelu")
    assert torch.equal(zero, torch.zeros(33, 33, dtype=HALF))


def same_bits() -> None:
    """Of a row whatever stands beside it, and whoever computes it."""
    for size, turned in itertools.product(((700, 300, 130), (40, 520, 1700)), range(4)):
        a, b = made(*size, turned)
        whole = product(a, b)
        for some in (slice(33, 38), slice(0, 16), slice(7, 24)):
            assert torch.equal(product(a[some], b), whole[some])
        assert torch.equal(product(a, b[:, 3:200]), whole[:, 3:200])
        threads = torch.get_num_threads()
        try:
            for others in (2, 3, 5):
                torch.set_num_threads(others)
                assert torch.equal(product(a, b), whole)
        finally:
            torch.set_num_threads(threads)


def layouts() -> None:
    """Strides of no kind, a sign that is still to be changed, neighbours that are one number."""
    a = torch.randn(40, 2, 70, dtype=HALF)[:, 0]
    b = torch.randn(2, 33, 70, dtype=HALF)[1].t()
    check(a, b)
    check(torch.randn(70, 80, dtype=HALF)[:, ::2].t(), torch.randn(140, 33, dtype=HALF)[::2])
    check(torch.randn(80, 140, dtype=HALF)[::2, ::2], torch.randn(140, 66, dtype=HALF)[::2, ::2])
    check(torch.ones(1, 1, dtype=HALF).expand(40, 70), torch.randn(70, 33, dtype=HALF))
    check(a, b, torch.randn(66, dtype=HALF)[::2])
    check(torch.randn(40, 3, dtype=HALF)[:, 1:2], torch.randn(1, 33, dtype=HALF))
    negative = torch._neg_view(a)
    assert negative.is_neg()
    assert torch.equal(product(negative, b), -product(a, b))


def gradients() -> None:
    """A linear layer's, of what is wanted; a weight's lies as the weight."""
    for k, n in ((70, 40), (33, 130)):
        x, weight, bias, target = (
            torch.randn(*size, dtype=HALF) for size in ((3, 33, k), (n, k), (n,), (3, 33, n))
        )

        def layer(*given: Tensor) -> Tensor:
            return products.linear(*given, way=amx.WAY)

        given = (x, nn.Parameter(weight), bias, target)
        got = layer_gradients(layer, HALF, *given)
        naive = layer_gradients(linear_reference, HALF, *given)
        oracle = layer_gradients(linear_reference, torch.float64, *given)
        assert got[1].is_contiguous()
        for one, plain, exact in zip(got, naive, oracle, strict=True):
            assert_right(one, plain, exact, gradient=True)


def nothing() -> None:
    """Where there is nothing to multiply torch serves."""
    a, b = made(40, 33, 70, 2)
    for x, y in ((a[:, :0], b[:0]), (a[:0], b), (a, b[:, :0])):
        assert torch.equal(products.product(x, y, way=amx.WAY), F.linear(x, y.t()))


def all_of(*cases: Callable[[], None]) -> Callable[[ModuleType], None]:
    def run(_: ModuleType) -> None:
        for case in cases:
            case()

    return run


CASES: dict[str, Callable[[ModuleType], None]] = {
    "bf16 product": all_of(
        sums, rounded_once, own_numbers_alone, same_bits, layouts, gradients, nothing
    ),
    "bf16 product a little": all_of(own_numbers_alone, layouts, nothing),
}
