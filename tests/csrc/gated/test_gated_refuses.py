"""The launchers of the gated activation refuse what could make the C++ read elsewhere."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from pyenc.errors import BackendError, InputError
from pyenc.ops import extension, gated_activation
from pyenc.ops.gated import cpu

pytestmark = pytest.mark.skipif(extension.load() is None, reason=extension.why_missing())

X = torch.randn(4, 8)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: cpu.forward(X, X[:3], "gelu"), "value must be torch.float32 of shape"),
        (lambda: cpu.forward(X, X.half(), "gelu"), "value must be torch.float32"),
        (lambda: cpu.forward(X.double(), None, "gelu"), "gate must be float32, bfloat16"),
        (lambda: cpu.forward(X, X, "elu"), "unknown activation 'elu'; known: gelu"),
        (lambda: cpu.forward(X.to("meta"), None, "gelu"), "gate must be a dense CPU"),
        (lambda: cpu.backward(X[:2], X, None, "gelu", X, None), "grad_out must be"),
        (lambda: cpu.backward(X, X, None, "gelu", X, X), "grad_value must be given exactly"),
        (lambda: cpu.backward(X, X, X, "gelu", X.t(), X), "grad_gate must be"),
        (
            lambda: cpu.backward(X, X, X, "gelu", torch.ones(4, 16)[:, ::2], X),
            "columns of grad_gate must be contiguous",
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
    gated_activation(wide, wide, "gelu")
    with pytest.raises(BackendError, match=r"no torch\.float64 kernel"):
        gated_activation(wide, wide, "gelu", backend="cpu")
