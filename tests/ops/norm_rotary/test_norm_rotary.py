"""The heads' norm and rotation against their float64 oracle, and that against its parts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from pyenc.errors import InputError, InputTypeError
from pyenc.ops import add_rms_norm, rms_norm_rotary, rotary
from tests.ops.elementwise import DTYPES, check

EPS = 1e-6


def tables(positions: int, dim: int) -> tuple[Tensor, Tensor]:
    angle = torch.arange(positions)[:, None] * 10000.0 ** -(torch.arange(dim // 2) * 2 / dim)
    return angle.cos(), angle.sin()


@pytest.mark.parametrize("plus_one", [False, True])
@pytest.mark.parametrize("k_heads", [0, 1, 3])
@pytest.mark.parametrize("dtype", DTYPES)
def test_against_the_oracle(dtype: torch.dtype, k_heads: int, plus_one: bool) -> None:
    turn = *tables(50, 16), torch.tensor([0, 1, 49, 7, 7])

    def op(x: Tensor, weight: Tensor, *k_weight: Tensor, backend: str | None) -> Tensor:
        of_keys = {"k_weight": k_weight[0], "k_heads": k_heads} if k_heads else {}
        return rms_norm_rotary(x, weight, *turn, EPS, plus_one=plus_one, backend=backend, **of_keys)

    weights = torch.randn(1 + bool(k_heads), 16)
    check(op, dtype, [torch.randn(5, 3, 16) * 3, *weights])


@pytest.mark.parametrize("backend", [None, "torch", "reference"])
def test_it_is_the_norm_and_then_the_turn(backend: str | None) -> None:
    x, turn = torch.randn(7, 5, 8), (*tables(9, 8), torch.arange(7))
    weight, k_weight = torch.randn(2, 8)
    got = rms_norm_rotary(
        x, weight, *turn, EPS, k_weight=k_weight, k_heads=2, plus_one=True, backend=backend
    )
    queries, _ = add_rms_norm(x[:, :3], None, 1 + weight, EPS, backend="reference")
    keys, _ = add_rms_norm(x[:, 3:], None, 1 + k_weight, EPS, backend="reference")
    right = rotary(torch.cat([queries, keys], 1), *turn, backend="reference")
    torch.testing.assert_close(got, right)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_call_without_a_gradient_gives_the_same_bits(dtype: torch.dtype) -> None:
    """It goes past the dispatcher."""
    x = torch.randn(7, 5, 8).to(dtype)
    weights = torch.randn(2, 8).to(dtype).requires_grad_()
    turn = *tables(9, 8), torch.arange(7)

    def run(**named: Any) -> Tensor:
        return rms_norm_rotary(x, weights[0], *turn, EPS, **named)

    for named in ({}, {"plus_one": True}, {"k_weight": weights[1], "k_heads": 5}):
        learned = run(**named)
        assert learned.requires_grad
        with torch.no_grad():
            assert torch.equal(run(**named), learned)


def test_weights_of_another_dtype_keep_it_in_their_gradients() -> None:
    x, turn = torch.randn(4, 3, 8, dtype=torch.bfloat16), (*tables(4, 8), torch.arange(4))
    weight = torch.randn(8, dtype=torch.float64, requires_grad=True)
    k_weight = torch.randn(8, dtype=torch.float16, requires_grad=True)
    out = rms_norm_rotary(x, weight, *turn, EPS, k_weight=k_weight, k_heads=1)
    assert out.dtype == torch.bfloat16
    out.float().square().sum().backward()
    for w in (weight, k_weight):
        assert w.grad is not None
        assert w.grad.dtype == w.dtype


def test_compiled_with_a_number_of_heads_that_is_a_symbol() -> None:
    def run(x: Tensor) -> Tensor:
        turn = *tables(9, 8), torch.arange(len(x))
        return rms_norm_rotary(x, WEIGHT, *turn, EPS, k_weight=WEIGHT * 3, k_heads=x.shape[1] // 3)

    torch._dynamo.reset()
    compiled = torch.compile(run, backend="aot_eager", fullgraph=True, dynamic=True)
    for heads in (3, 6, 9):
        x = torch.randn(5, heads, 8)
        torch.testing.assert_close(compiled(x), run(x))


X, TURN = torch.ones(2, 3, 8), (*tables(4, 8), torch.tensor([0, 1]))
WEIGHT = torch.ones(8)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: rms_norm_rotary(X[..., :7], WEIGHT[:7], *TURN, EPS), "D even"),
        (lambda: rms_norm_rotary(X[0], WEIGHT, *TURN, EPS), "D even"),
        (lambda: rms_norm_rotary(X[..., :6], WEIGHT[:6], *TURN, EPS), r"\(P, 3\)"),
        (lambda: rms_norm_rotary(X, WEIGHT[:4], *TURN, EPS), r"weight must be \(8,\), got \(4,\)"),
        (lambda: rms_norm_rotary(X, WEIGHT, *TURN[:2], torch.tensor([0.0, 1]), EPS), "int32 or"),
        (
            lambda: rms_norm_rotary(X, WEIGHT, *TURN[:2], torch.tensor([0, 4]), EPS),
            "rms_norm_rotary: positions run from 0 to 4, the tables from 0 to 3",
        ),
        (lambda: rms_norm_rotary(X, WEIGHT, *TURN, -1.0), "eps must be finite"),
        (lambda: rms_norm_rotary(X, WEIGHT, *TURN, EPS, k_heads=2), "both or neither"),
        (lambda: rms_norm_rotary(X, WEIGHT, *TURN, EPS, k_weight=WEIGHT), "both or neither"),
        (
            lambda: rms_norm_rotary(X, WEIGHT, *TURN, EPS, k_weight=WEIGHT, k_heads=4),
            "k_heads must be a whole number from 0 to the 3 heads of x, got 4",
        ),
        (
            lambda: rms_norm_rotary(X, WEIGHT, *TURN, EPS, k_weight=WEIGHT[:2], k_heads=1),
            r"k_weight must be \(8,\)",
        ),
        (lambda: rms_norm_rotary(X, WEIGHT.to("meta"), *TURN, EPS), "share a device"),
        (lambda: rms_norm_rotary(X.long(), WEIGHT, *TURN, EPS), "x must be float"),
    ],
)
@pytest.mark.parametrize("learned", [False, True])
def test_bad_input_is_named(call: Callable[[], object], message: str, learned: bool) -> None:
    with torch.set_grad_enabled(learned), pytest.raises(InputError, match=message):
        call()


def test_what_is_no_tensor_is_named() -> None:
    with pytest.raises(InputTypeError, match="weight must be a tensor, got list"):
        rms_norm_rotary(X, [1.0] * 8, *TURN, EPS)  # type: ignore[arg-type]
