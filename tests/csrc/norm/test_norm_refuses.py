"""The launchers of the norms refuse what could make the C++ read elsewhere."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from pyenc.errors import BackendError, InputError
from pyenc.ops import add_rms_norm, extension
from pyenc.ops.norm import cpu

pytestmark = pytest.mark.skipif(extension.load() is None, reason=extension.why_missing())

X = torch.randn(4, 8)
ONES = torch.ones(8)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: cpu.forward(X[0], None, ONES, None, 0, False), "x must be \\(T, C\\)"),
        (lambda: cpu.forward(X, None, ONES[:7], None, 0, False), "x must be torch.float32 of"),
        (lambda: cpu.forward(X, X[:3], ONES, None, 0, False), "residual must be"),
        (lambda: cpu.forward(X, None, ONES.half(), None, 0, False), "weight must be"),
        (lambda: cpu.forward(X, None, ONES, ONES[:3], 0, False), "bias must be"),
        (
            lambda: cpu.forward(torch.ones(4, 16)[:, ::2], None, ONES, None, 0, False),
            "x must be contiguous",
        ),
        (
            lambda: cpu.backward(X, None, X, ONES, None, torch.ones(3, 2), 0, False),
            "stats must be",
        ),
        (
            lambda: cpu.backward(X[:3], None, X, ONES, None, torch.ones(4, 2), 0, False),
            "grad_normed must be",
        ),
    ],
)
def test_bad_input_is_refused_before_an_address_is_read(
    call: Callable[[], object], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        call()


def test_what_the_kernel_cannot_serve_goes_to_torch_or_says_why() -> None:
    wide = torch.randn(3, 8, dtype=torch.float64)
    add_rms_norm(wide, None, wide[0], 1e-5)
    with pytest.raises(BackendError, match=r"no torch\.float64 kernel"):
        add_rms_norm(wide, None, wide[0], 1e-5, backend="cpu")
    mixed = wide.float(), wide, wide[0].float()
    assert add_rms_norm(*mixed, 1e-5)[0].dtype == torch.float64
    with pytest.raises(BackendError, match=r"no torch\.float64 kernel"):
        add_rms_norm(*mixed, 1e-5, backend="cpu")
