"""The launchers of int8's passes refuse what could make the C++ read elsewhere."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from pyenc.errors import InputError
from pyenc.ops import extension
from pyenc.ops.linear.int8_rows import few_rows_in_one, finish_in_one, quantize_in_one

pytestmark = pytest.mark.skipif(extension.load() is None, reason=extension.why_missing())

X = torch.randn(4, 8)


def finish(**changes: Tensor) -> None:
    of = {
        "y": torch.randn(4, 8), "step": torch.ones(4), "zero": torch.ones(4),
        "sums": torch.ones(8), "bias": torch.ones(8), "out": torch.empty(4, 8),
    } | changes  # fmt: skip
    finish_in_one(of["y"], of["step"], of["zero"], of["sums"], of["bias"], "gelu", of["out"])


def few(**changes: Tensor) -> None:
    of = {
        "x": X, "weight": torch.ones(6, 8, dtype=torch.int8), "scale": torch.ones(6),
        "bias": torch.ones(6),
    } | changes  # fmt: skip
    few_rows_in_one(of["x"], of["weight"], of["scale"], of["bias"], None)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: quantize_in_one(X.double()), "x must be float32, bfloat16 or float16"),
        (lambda: quantize_in_one(X[None]), "x must be torch.float32 of shape"),
        (lambda: quantize_in_one(X.t()), "x must be contiguous"),
        (lambda: quantize_in_one(X.to("meta")), "x must be a dense CPU"),
        (lambda: finish(y=X.half()), "y must be torch.float32"),
        (lambda: finish(out=torch.empty(4, 7)), r"out must be torch.float32 of shape \(4, 8\)"),
        (lambda: finish(out=X.double()), "out must be float32, bfloat16 or float16"),
        (lambda: finish(step=torch.ones(3)), r"step must be torch.float32 of shape \(4,\)"),
        (lambda: finish(zero=torch.ones(4).double()), "zero must be torch.float32"),
        (lambda: finish(sums=torch.ones(16)[::2]), "sums must be contiguous"),
        (lambda: finish(bias=torch.ones(9)), r"bias must be torch.float32 of shape \(8,\)"),
        (lambda: finish(out=torch.empty(8, 4).t()), "out must be contiguous"),
        (lambda: few(x=X.double()), "x must be float32, bfloat16 or float16"),
        (lambda: few(x=torch.ones(8, 4).t()), "x must be contiguous"),
        (lambda: few(weight=torch.ones(6, 8)), "weight must be torch.int8"),
        (lambda: few(weight=torch.ones(6, 7, dtype=torch.int8)), "weight must be torch.int8"),
        (lambda: few(weight=torch.ones(8, 6, dtype=torch.int8).t()), "must be in one piece"),
        (lambda: few(scale=torch.ones(7)), r"scale must be torch.float32 of shape \(6,\)"),
        (lambda: few(scale=torch.ones(12)[::2]), "scale must be contiguous"),
        (lambda: few(bias=torch.ones(6).double()), "bias must be torch.float32"),
    ],
)
def test_bad_input_is_refused_before_an_address_is_read(
    call: Callable[[], object], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        call()
