"""The C++ kernel of the rotary embedding against its float64 oracle."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pyenc.ops import extension, rotary
from tests.ops.elementwise import CPU_DTYPES as DTYPES
from tests.ops.elementwise import WIDTHS, compare, leaf, same_with_any_number_of_threads

HALVES = [1, 2, 3, 8, 15, 16, 17, 20, 32, 64, 128]

pytestmark = pytest.mark.skipif(extension.load() is None, reason=extension.why_missing())


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
def test_rotary(dtype: torch.dtype) -> None:
    for i, half in enumerate(HALVES):
        check_rotary(1 + i * 3 % 7, 1 + i % 3, half, dtype)


@settings(max_examples=40, deadline=None)
@given(rows=st.integers(0, 130), half=st.integers(1, 70), dtype=st.sampled_from(DTYPES))
def test_any_shape(rows: int, half: int, dtype: torch.dtype) -> None:
    torch.manual_seed(rows * 100 + half)
    check_rotary(rows, 2, half, dtype)


def test_strides_change_nothing() -> None:
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


def test_the_same_bits_with_any_number_of_threads_and_every_time() -> None:
    x, (cos, sin) = torch.randn(2000, 1, 130), tables(2000, 65)

    def run() -> list[Tensor]:
        a = x.detach().requires_grad_()
        out = rotary(a, cos, sin, torch.arange(2000), backend="cpu")
        return [out, *torch.autograd.grad(out.square().sum(), [a])]

    same_with_any_number_of_threads(run)


def test_opcheck() -> None:
    cos, sin = tables(9, 4)
    for back in (True, False):
        arguments = (leaf(9, 2, 8), cos, sin, torch.arange(9), back, "cpu")
        torch.library.opcheck(torch.ops.pyenc.rotary.default, arguments)


def main() -> None:
    """A little of everything above, for tests/ops/test_instruction_sets.py."""
    for width, dtype in itertools.product(WIDTHS[3:], DTYPES):
        check_rotary(5, 2, width, dtype)
