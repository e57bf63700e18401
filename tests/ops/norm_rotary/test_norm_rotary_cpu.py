"""The C++ kernels of the heads' norm and rotation against their float64 oracle."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pyenc.ops import extension, rms_norm_rotary
from tests.ops.elementwise import CPU_DTYPES as DTYPES
from tests.ops.elementwise import WIDTHS, compare, leaf, same_with_any_number_of_threads

HALVES = [1, 2, 3, 8, 15, 16, 17, 20, 32, 64, 128]
EPS = 1e-6

pytestmark = pytest.mark.skipif(extension.load() is None, reason=extension.why_missing())


def tables(positions: int, half: int) -> tuple[Tensor, Tensor]:
    angle = torch.arange(positions)[:, None] * 10000.0 ** -(torch.arange(half) / half)
    return angle.cos(), angle.sin()


def check_norm_rotary(
    tokens: int, heads: int, k_heads: int, half: int, dtype: torch.dtype, plus_one: bool = False
) -> None:
    turn = *tables(50, half), torch.randint(0, 50, (tokens,))

    def op(backend: str, x: Tensor, weight: Tensor, *k_weight: Tensor) -> Tensor:
        of_keys: dict[str, Any] = {"k_weight": k_weight[0], "k_heads": k_heads} if k_weight else {}
        return rms_norm_rotary(x, weight, *turn, EPS, plus_one=plus_one, backend=backend, **of_keys)

    weights = torch.randn(1 + bool(k_heads), 2 * half)
    compare(op, [torch.randn(tokens, heads, 2 * half) + 1, *weights], dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_norm_rotary(dtype: torch.dtype) -> None:
    for i, half in enumerate(HALVES):
        check_norm_rotary(1 + i * 7 % 19, 1 + i % 3, i % 2, half, dtype, i % 3 == 0)


@settings(max_examples=40, deadline=None)
@given(
    rows=st.integers(0, 130), half=st.integers(1, 70), k_heads=st.integers(0, 3),
    dtype=st.sampled_from(DTYPES), plus_one=st.booleans(),
)  # fmt: skip
def test_any_shape(rows: int, half: int, k_heads: int, dtype: torch.dtype, plus_one: bool) -> None:
    torch.manual_seed(rows * 100 + half)
    check_norm_rotary(rows, 3, k_heads, half, dtype, plus_one)


def test_strides_change_nothing() -> None:
    """q and k of one product with v; the gradient of a sum is one number seen from everywhere, and
    v's is untouched."""
    qkv = torch.randn(9, 7, 16, requires_grad=True)
    weights, turn = torch.randn(2, 16), (*tables(9, 8), torch.arange(9))

    def run(x: Tensor, *turn: Tensor, **named: Any) -> Tensor:
        named = {"k_weight": weights[1], "k_heads": 2, "backend": "cpu"} | named
        return rms_norm_rotary(x, weights[0], *turn, EPS, **named)

    qk = run(qkv[:, :5], *turn)
    assert qk.is_contiguous()
    assert torch.equal(qk, run(qkv[:, :5].contiguous(), *turn[:2], turn[2].int()))
    assert torch.equal(qk, run(qkv.transpose(1, 2).contiguous().transpose(1, 2)[:, :5], *turn))
    (grad,) = torch.autograd.grad(qk.sum(), qkv, retain_graph=True)
    (right,) = torch.autograd.grad(run(qkv[:, :5], *turn, backend="reference").sum(), qkv)
    torch.testing.assert_close(grad, right)
    assert not grad[:, 5:].any()


@pytest.mark.parametrize("eps", [1e-12, 1e-5])
def test_hard_heads(eps: float) -> None:
    """Zeros, huge and tiny numbers, one that is all of the norm; a NaN stays its own head's."""
    rows = [
        torch.zeros(24),
        torch.randn(24) * 1e15,
        torch.randn(24) * 1e-15,
        torch.eye(24)[3] * 1e6,
    ]
    turn = *tables(5, 12), torch.tensor([4])
    weight = torch.randn(24)
    for row in rows:
        got, right = (
            rms_norm_rotary(row[None, None].to(dtype), weight.to(dtype), *turn, eps, backend=name)
            for name, dtype in (("cpu", torch.float32), ("reference", torch.float64))
        )
        torch.testing.assert_close(got.double(), right, rtol=1e-5, atol=1e-6)
    x = torch.randn(2, 2, 24)
    x[1, 0, 5] = torch.nan
    out = rms_norm_rotary(x, weight, *turn[:2], torch.tensor([1, 2]), eps, backend="cpu")
    assert out.isnan().any(-1).tolist() == [[False, False], [True, False]]


def test_the_same_bits_with_any_number_of_threads_and_every_time() -> None:
    x, turn = torch.randn(2000, 3, 130), (*tables(2000, 65), torch.arange(2000))
    weights = torch.randn(2, 130)

    def run() -> list[Tensor]:
        leaves = [x.detach().requires_grad_(), *(w.detach().requires_grad_() for w in weights)]
        out = rms_norm_rotary(
            leaves[0], leaves[1], *turn, EPS, k_weight=leaves[2], k_heads=1, backend="cpu"
        )
        return [out, *torch.autograd.grad(out.square().sum() + out.sum(), leaves)]

    same_with_any_number_of_threads(run)


def test_opcheck() -> None:
    turn = *tables(9, 4), torch.arange(9)
    for k_weight, k_heads in ((None, 0), (leaf(8), 2)):
        arguments = (leaf(9, 3, 8), leaf(8), k_weight, k_heads, *turn, EPS, False, "cpu")
        torch.library.opcheck(torch.ops.pyenc.rms_norm_rotary.default, arguments)


def main() -> None:
    """A little of everything above, for tests/ops/test_instruction_sets.py."""
    for width, dtype in itertools.product(WIDTHS[3:], DTYPES):
        check_norm_rotary(5, 3, 1, width, dtype)
