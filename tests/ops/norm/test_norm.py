"""Residual addition and norm against their float64 oracles."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from pyenc.errors import InputError, InputTypeError
from pyenc.ops import add_layer_norm, add_rms_norm, extension
from pyenc.ops.norm import _layer_norm_table
from tests.ops.elementwise import DTYPES, check
from tests.oracle import assert_right, margin, naively

BACKENDS = ["torch", *(["cpu"] if extension.load() is not None else [])]


@pytest.mark.parametrize("dtype", DTYPES)
def test_add_layer_norm(dtype: torch.dtype) -> None:
    tensors = [torch.randn(6, 40) * 5 + 2, torch.randn(6, 40), torch.randn(40), torch.randn(40)]
    check(add_layer_norm, dtype, tensors, 1e-12)


@pytest.mark.parametrize("dtype", DTYPES)
def test_add_rms_norm(dtype: torch.dtype) -> None:
    check(add_rms_norm, dtype, [torch.randn(6, 40), torch.randn(6, 40), torch.randn(40)], 1e-6)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kinds", [("bfloat16", "float32"), ("float32", "float16")])
@pytest.mark.parametrize("op", [add_layer_norm, add_rms_norm])
def test_a_residual_of_another_dtype(
    op: Callable[..., tuple[Tensor, Tensor]], kinds: tuple[str, str], backend: str
) -> None:
    """As autocast makes them: the sum in the wider, each gradient in the dtype it is of."""
    x, residual = (torch.randn(7, 24).to(getattr(torch, kind)) for kind in kinds)
    rest = [torch.randn(24) for _ in range(2 if op is add_layer_norm else 1)]
    shares = torch.randn(2, 7, 24, dtype=torch.float64)
    found = []
    for wide, name in ((False, backend), (False, "reference"), (True, "reference")):
        given = [t.double() if wide else t.clone() for t in (x, residual, *rest)]
        given = [t.requires_grad_() for t in given]
        answers = op(*given, 1e-6, backend=name)
        loss = sum((a * s.to(a.dtype)).sum() for a, s in zip(answers, shares, strict=True))
        grads = torch.autograd.grad(loss, given)
        assert {a.dtype for a in answers} == {torch.float64 if wide else torch.float32}
        assert [g.dtype for g in grads] == [t.dtype for t in given]
        found.append([*answers, *grads])
    for i, three in enumerate(zip(*found, strict=True)):
        assert_right(*three, gradient=i > 1, what=str(i))


@pytest.mark.parametrize("backend", [None, *BACKENDS])
@pytest.mark.parametrize("kind", ["bfloat16", "float16"])
@pytest.mark.parametrize("learned", [False, True])
def test_a_weight_wider_than_the_sum_is_not_rounded(
    learned: bool, kind: str, backend: str | None
) -> None:
    """As one plus a weight is: the answer is the same with a gradient and without."""
    x = (4 * torch.randn(50, 40)).to(getattr(torch, kind))
    weight, bias = 3 + torch.randn(40) / 100, torch.randn(40)
    for given in ((weight, bias), (weight, None), (weight, bias.to(x.dtype))):
        with torch.set_grad_enabled(learned):
            leaf = x.clone().requires_grad_()
            got, _ = add_layer_norm(leaf, None, *given, 1e-6, backend=backend)
        exact = [None if t is None else t.double() for t in given]
        oracle, _ = add_layer_norm(x.double(), None, *exact, 1e-6, backend="reference")  # type: ignore[arg-type]
        assert got.dtype == x.dtype
        # No more is rounded than the result, once.
        with margin(1.9):
            assert_right(got.detach(), oracle.to(x.dtype), oracle)


@pytest.mark.parametrize("backend", [None, *BACKENDS])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("rows", [100, 3000])
def test_gradients_of_parameters_are_not_added_up_in_the_half(
    rows: int, dtype: torch.dtype, backend: str | None
) -> None:
    """Of some thousand rows torch's own are off by a tenth."""
    tensors = [t.to(dtype) for t in (torch.randn(rows, 24), torch.randn(24), torch.randn(24))]
    share = torch.randn(rows, 24).to(dtype)

    def grads(name: str | None, kind: torch.dtype) -> tuple[Tensor, ...]:
        x, weight, bias = given = [t.to(kind).requires_grad_() for t in tensors]
        y, _ = add_layer_norm(x, None, weight, bias, 1e-6, backend=name)
        return torch.autograd.grad((y * share.to(kind)).sum(), given)

    exact = grads("reference", torch.float64)
    with naively():
        naive = grads("reference", dtype)
    for i, three in enumerate(zip(grads(backend, dtype), naive, exact, strict=True)):
        assert_right(*three, gradient=True, what=str(i))


def test_norms_without_residual() -> None:
    x, weight = torch.randn(3, 10), torch.randn(10)
    normed, total = add_layer_norm(x, None, weight, None, 1e-5)
    assert torch.equal(total, x)
    torch.testing.assert_close(normed, torch.nn.functional.layer_norm(x, (10,), weight, None, 1e-5))
    assert torch.equal(add_rms_norm(x, None, weight, 1e-6)[1], x)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: add_layer_norm(torch.ones(2, 3), None, torch.ones(2), None, 1e-5), "weight must"),
        (
            lambda: add_rms_norm(torch.ones(2, 3), torch.ones(3), torch.ones(3), 1e-5),
            "residual must be as x",
        ),
    ],
)
def test_bad_input_is_named(call: Callable[[], object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        call()


@pytest.mark.parametrize("backend", [None, *BACKENDS, "reference"])
@pytest.mark.parametrize("eps", [-1e-5, math.nan, math.inf, -math.inf])
def test_an_eps_that_is_none_is_refused(eps: float, backend: str | None) -> None:
    """The root might be of a negative number, and of some rows would be."""
    x, weight = torch.randn(2, 3), torch.ones(3)
    for wanted in (False, True):
        with torch.set_grad_enabled(wanted):
            with pytest.raises(InputError, match=r"add_layer_norm: eps must be finite and not neg"):
                add_layer_norm(x, None, weight, None, eps, backend=backend)
            with pytest.raises(InputError, match=f"add_rms_norm: eps must be .* got {eps}"):
                add_rms_norm(x, x, weight, eps, backend=backend)


def test_an_eps_of_another_kind_is_refused() -> None:
    x, weight = torch.randn(2, 3), torch.ones(3)
    for wrong in ("1e-5", None, [1e-5]):
        for wanted in (False, True):
            with torch.set_grad_enabled(wanted), pytest.raises(InputTypeError, match="eps must be"):
                add_layer_norm(x, None, weight, None, wrong)  # type: ignore[arg-type]
    assert torch.isfinite(add_layer_norm(x, None, weight, None, 0)[0]).all()


def test_layer_norm_prefers_its_kernel_on_a_card() -> None:
    """As bench/NOTES.md's figures have it; what cannot serve says why, and torch's is next."""
    with FakeTensorMode():
        on_card = torch.empty(2, 64, device="cuda")
        weight = torch.empty(64, device="cuda")
    assert list(_layer_norm_table(on_card, None, weight, None))[:2] == ["triton", "torch"]
    weight, learned = torch.empty(64), torch.empty(64, requires_grad=True)

    def first(x: torch.Tensor, weight: torch.Tensor = weight) -> str:
        return next(iter(_layer_norm_table(x, None, weight, None)))

    assert first(torch.empty(2, 64)) == "torch"
    assert first(torch.empty(2, 64, requires_grad=True)) == "cpu"
    assert first(torch.empty(2, 64).bfloat16()) == "torch"
    assert first(torch.empty(2, 64).bfloat16(), learned) == "cpu"
