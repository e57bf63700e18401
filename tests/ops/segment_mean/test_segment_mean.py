"""`segment_mean` and `masked_mean_pool`: every backend against the float64 oracle."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pyenc.errors import BackendError, InputError
from pyenc.ops import extension, masked_mean_pool, segment_mean
from tests.oracle import assert_right, naively

BACKENDS = ["torch"] + (["cpu"] if extension.load() is not None else [])
"""Triton's own tests, in a process of their own, are test_segment_mean_kernels.py."""


def check(backend: str, dtype: torch.dtype, lengths: list[int], weighted: bool, norm: bool) -> None:
    tokens = sum(lengths)
    x = torch.randn(tokens, 19).to(dtype)
    # By a sum of weights near zero roundings are divided: then what either form is off is luck.
    weights = 0.05 + torch.rand(tokens) if weighted else None
    bounds = torch.tensor([0, *itertools.accumulate(lengths)])
    grad = torch.randn(len(lengths), 19)
    results: list[list[Tensor]] = []
    for name, working in ((backend, dtype), ("reference", dtype), ("reference", torch.float64)):
        leaf = x.detach().to(working).requires_grad_()
        leaves = [leaf]
        w = None
        if weights is not None:
            w = weights.detach().to(torch.promote_types(working, torch.float32)).requires_grad_()
            leaves.append(w)
        with naively():
            out = segment_mean(leaf, bounds, w, norm, backend=name)
        assert out.dtype == torch.promote_types(working, torch.float32)
        results.append([out.detach()])
        if tokens and out.requires_grad:
            results[-1] += torch.autograd.grad(
                (out * grad.to(out.dtype)).sum(), leaves, materialize_grads=True
            )
    for i, parts in enumerate(zip(*results, strict=True)):
        assert_right(*parts, gradient=i > 0, what=f"result {i}")


@pytest.mark.usefixtures("poison")
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("norm", [False, True])
def test_grid(backend: str, dtype: torch.dtype, weighted: bool, norm: bool) -> None:
    check(backend, dtype, [5, 1, 0, 40, 1, 700, 2], weighted, norm)
    check("torch", torch.float64, [5, 1, 0, 40], weighted, norm)


@pytest.mark.parametrize("backend", BACKENDS)
@given(
    lengths=st.lists(st.integers(0, 30), max_size=7),
    weighted=st.booleans(),
    norm=st.booleans(),
)
@settings(max_examples=40, deadline=None)
def test_any_lengths(backend: str, lengths: list[int], weighted: bool, norm: bool) -> None:
    check(backend, torch.float32, lengths, weighted, norm)


@pytest.mark.parametrize("backend", [*BACKENDS, "reference"])
@pytest.mark.parametrize("norm", [False, True])
def test_no_weight_gives_zeros_and_no_gradient(backend: str, norm: bool) -> None:
    x = torch.randn(6, 4, requires_grad=True)
    weights = torch.tensor([0.0, 0, 0, 1, 1, 0])
    out = segment_mean(x, torch.tensor([0, 3, 3, 6]), weights, norm, backend=backend)
    assert torch.equal(out[:2], torch.zeros(2, 4))
    assert out[2].abs().min() > 0
    (grad,) = torch.autograd.grad(out.sum(), x)
    assert torch.equal(grad[:3], torch.zeros(3, 4))
    assert torch.isfinite(grad).all()


@pytest.mark.parametrize("backend", [*BACKENDS, "reference"])
@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("bounds", [[0], [0, 0], [0, 3]], ids=str)
def test_of_no_weight_at_all_there_is_a_gradient_of_zeros(
    backend: str, norm: bool, bounds: list[int]
) -> None:
    x = torch.randn(bounds[-1], 4, requires_grad=True)
    out = segment_mean(x, torch.tensor(bounds), torch.zeros(len(x)), norm, backend=backend)
    assert torch.equal(out, torch.zeros(len(bounds) - 1, 4))
    (grad,) = torch.autograd.grad(out.sum(), x)
    assert torch.equal(grad, torch.zeros_like(x))


@pytest.mark.parametrize("backend", BACKENDS)
def test_same_bits_twice(backend: str) -> None:
    x, bounds = torch.randn(5000, 33), torch.tensor([0, 4990, 5000])
    first = segment_mean(x, bounds, normalize=True, backend=backend)
    assert torch.equal(first, segment_mean(x, bounds, normalize=True, backend=backend))


def test_masked_mean_pool_is_the_formula() -> None:
    x, mask = torch.randn(3, 7, 5), torch.tensor([[1] * 7, [0, 0, 1, 0, 1, 1, 0], [0] * 7])
    expected = (x * mask[:, :, None]).sum(1) / mask.sum(1).clamp(min=1)[:, None]
    torch.testing.assert_close(masked_mean_pool(x, mask), expected)
    unit = masked_mean_pool(x, mask.bool(), normalize=True)
    torch.testing.assert_close(unit.norm(dim=1), torch.tensor([1.0, 1.0, 0.0]))


@pytest.mark.parametrize(
    ("x", "bounds", "weights", "message"),
    [
        (torch.ones(4, 2), torch.tensor([0, 5]), None, "ends at 5, but there are 4"),
        (torch.ones(4, 2), torch.tensor([0, 3, 1, 4]), None, "decreases from 3 to 1"),
        (torch.ones(4, 2), torch.tensor([-1, 4]), None, "must start at 0, got -1"),
        (torch.ones(4, 2), torch.zeros(0, dtype=torch.long), None, r"\(B \+ 1,\)"),
        (torch.ones(4), torch.tensor([0, 4]), None, r"x must be \(T, C\)"),
        (torch.ones(4, 2), torch.tensor([0, 4]), torch.ones(3), r"weights must be \(4,\)"),
        (torch.ones(4, 2), torch.tensor([0, 4]), torch.ones(4).long(), "weights must be float"),
        (torch.ones(4, 2).long(), torch.tensor([0, 4]), None, "x must be float"),
    ],
)
@pytest.mark.parametrize("backend", [*BACKENDS, "reference"])
def test_bad_input_is_named(
    x: Tensor, bounds: Tensor, weights: Tensor | None, message: str, backend: str
) -> None:
    with pytest.raises(InputError, match=message):
        segment_mean(x, bounds, weights, backend=backend)


def test_padded_bad_input_is_named() -> None:
    with pytest.raises(InputError, match=r"x must be \(B, N, C\) and mask \(B, N\)"):
        masked_mean_pool(torch.ones(2, 3, 4), torch.ones(2, 4))
    with pytest.raises(InputError, match=r"mask must be of bool, .* got torch\.complex64"):
        masked_mean_pool(torch.ones(2, 3, 4), torch.ones(2, 3).cfloat())
    with pytest.raises(InputError, match="mask must be dense"):
        masked_mean_pool(torch.ones(2, 3, 4), torch.ones(2, 3).to_sparse())


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_triton_backend_says_why_it_cannot_serve(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(BackendError, match="'triton' backend cannot serve segment_mean: Triton"):
        segment_mean(torch.ones(2, 2), torch.tensor([0, 2]), backend="triton")


def test_cpu_backend_says_why_it_cannot_serve() -> None:
    reason = "no torch.float64 kernel"
    with pytest.raises(
        BackendError, match=f"'cpu' backend cannot serve segment_mean: it has {reason}"
    ):
        segment_mean(torch.ones(2, 2).double(), torch.tensor([0, 2]), backend="cpu")


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("backend", [None, "torch", "reference"])
def test_many_weights_at_once(backend: str | None, norm: bool) -> None:
    """Of torch.func, some of which leave a sequence nothing."""
    x, bounds = torch.randn(7, 5), torch.tensor([0, 3, 3, 7])
    weights, share = torch.rand(3, 7), torch.randn(3, 5)
    weights[1, :3] = 0

    def pooled(w: Tensor) -> Tensor:
        return (segment_mean(x, bounds, w, norm, backend=backend) * share).sum()

    leaf = weights.clone().requires_grad_()
    total = torch.stack([pooled(w) for w in leaf])
    torch.testing.assert_close(torch.func.vmap(pooled)(weights), total.detach())
    (wanted,) = torch.autograd.grad(total.sum(), leaf)
    torch.testing.assert_close(torch.func.vmap(torch.func.grad(pooled))(weights), wanted)


@pytest.mark.parametrize("backend", BACKENDS)
def test_of_no_sequences_weights_have_a_gradient(backend: str) -> None:
    x, weights = torch.randn(0, 5, requires_grad=True), torch.randn(0, requires_grad=True)
    out = segment_mean(x, torch.tensor([0]), weights, backend=backend)
    assert out.shape == (0, 5)
    grads = torch.autograd.grad(out.sum(), (x, weights))
    assert [g.shape for g in grads] == [x.shape, weights.shape]
