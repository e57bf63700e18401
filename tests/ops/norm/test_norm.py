"""Residual addition and norm against their float64 oracles."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from pyenc.errors import InputError
from pyenc.ops import add_layer_norm, add_rms_norm
from tests.ops.elementwise import DTYPES, check


@pytest.mark.parametrize("dtype", DTYPES)
def test_add_layer_norm(dtype: torch.dtype) -> None:
    tensors = [torch.randn(6, 40) * 5 + 2, torch.randn(6, 40), torch.randn(40), torch.randn(40)]
    check(add_layer_norm, dtype, tensors, 1e-12)


@pytest.mark.parametrize("dtype", DTYPES)
def test_add_rms_norm(dtype: torch.dtype) -> None:
    check(add_rms_norm, dtype, [torch.randn(6, 40), torch.randn(6, 40), torch.randn(40)], 1e-6)


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
