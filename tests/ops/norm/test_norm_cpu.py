"""The C++ kernels of residual addition and norm against their float64 oracles."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pyenc.ops import add_layer_norm, add_rms_norm, extension
from tests.ops.elementwise import CPU_DTYPES as DTYPES
from tests.ops.elementwise import WIDTHS, compare, leaf, same_with_any_number_of_threads
from tests.oracle import assert_right

pytestmark = pytest.mark.skipif(extension.load() is None, reason=extension.why_missing())


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


@settings(max_examples=40, deadline=None)
@given(
    rows=st.integers(0, 130), width=st.integers(3, 72), dtype=st.sampled_from(DTYPES),
    rms=st.booleans(),
)  # fmt: skip
def test_any_shape(rows: int, width: int, dtype: torch.dtype, rms: bool) -> None:
    torch.manual_seed(rows * 100 + width)
    check_norm(rows, width, dtype, rms=rms)


def test_nothing_at_all() -> None:
    weight = torch.ones(3, requires_grad=True)
    normed, total = add_layer_norm(torch.empty(0, 3), None, weight, None, 1e-5, backend="cpu")
    assert normed.shape == total.shape == (0, 3)
    normed.sum().backward()
    assert weight.grad is not None
    assert weight.grad.tolist() == [0, 0, 0]


def test_leading_axes_and_strides_change_nothing() -> None:
    base, weight = torch.randn(6, 5, 40).transpose(0, 1), torch.randn(40)
    apart = add_rms_norm(base, None, weight, 1e-6, backend="cpu")[0]
    dense = add_rms_norm(base.contiguous().view(-1, 40), None, weight, 1e-6, backend="cpu")[0]
    assert torch.equal(apart.reshape(-1, 40), dense)


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
    x, other, weight = torch.randn(2000, 130), torch.randn(2000, 130), torch.randn(130)

    def run() -> list[Tensor]:
        a, b, w = (t.detach().requires_grad_() for t in (x, other, weight))
        outs = [
            *add_layer_norm(a, b, w, w, 1e-5, backend="cpu"),
            *add_rms_norm(a, b, w, 1e-5, backend="cpu"),
        ]
        return [*outs, *torch.autograd.grad([o.square().sum() for o in outs], [a, b, w])]

    same_with_any_number_of_threads(run)


def test_opcheck() -> None:
    for residual, bias, rms in itertools.product(
        (leaf(3, 6), None), (leaf(6), None), (True, False)
    ):
        arguments = (leaf(3, 6), residual, leaf(6), bias, 1e-5, rms, False, "cpu")
        torch.library.opcheck(torch.ops.pyenc.add_norm.default, arguments)


def test_parameters_of_another_dtype_keep_it_in_their_gradients() -> None:
    x = torch.randn(5, 8, dtype=torch.bfloat16, requires_grad=True)
    weight = torch.randn(8, dtype=torch.float16, requires_grad=True)
    normed, _ = add_layer_norm(x, None, weight, None, 1e-5, backend="cpu")
    assert normed.dtype == torch.bfloat16
    grads = torch.autograd.grad(normed.float().sum(), [x, weight])
    assert [g.dtype for g in grads] == [torch.bfloat16, torch.float16]


def main() -> None:
    """A little of everything above, for tests/ops/test_instruction_sets.py."""
    for (i, width), dtype in itertools.product(enumerate(WIDTHS[3:]), DTYPES):
        check_norm(70, width, dtype, rms=i % 2 == 0)
    test_norms_of_hard_rows()
