"""Gated activation, norms and rotary on the CPU refuse what could make the C++ read elsewhere."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from pyenc.errors import BackendError, InputError
from pyenc.ops import add_rms_norm, extension, gated_activation, rotary
from pyenc.ops.gated import cpu as gated_cpu
from pyenc.ops.norm import cpu as norm_cpu
from pyenc.ops.rotary import cpu as rotary_cpu

pytestmark = pytest.mark.skipif(extension.load() is None, reason=extension.why_missing())

X = torch.randn(4, 8)
ONES = torch.ones(8)
TURN = torch.ones(4, 4), torch.zeros(4, 4)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: gated_cpu.forward(X, X[:3], "gelu"), "value must be torch.float32 of shape"),
        (lambda: gated_cpu.forward(X, X.half(), "gelu"), "value must be torch.float32"),
        (lambda: gated_cpu.forward(X.double(), None, "gelu"), "gate must be float32, bfloat16"),
        (lambda: gated_cpu.forward(X, X, "elu"), "unknown activation 'elu'; known: gelu"),
        (lambda: gated_cpu.forward(X.to("meta"), None, "gelu"), "gate must be a dense CPU"),
        (lambda: gated_cpu.backward(X[:2], X, None, "gelu", X, None), "grad_out must be"),
        (lambda: gated_cpu.backward(X, X, None, "gelu", X, X), "grad_value must be given exactly"),
        (lambda: gated_cpu.backward(X, X, X, "gelu", X.t(), X), "grad_gate must be"),
        (
            lambda: gated_cpu.backward(X, X, X, "gelu", torch.ones(4, 16)[:, ::2], X),
            "columns of grad_gate must be contiguous",
        ),
        (lambda: norm_cpu.forward(X[0], None, ONES, None, 0, False), "x must be \\(T, C\\)"),
        (lambda: norm_cpu.forward(X, None, ONES[:7], None, 0, False), "x must be torch.float32 of"),
        (lambda: norm_cpu.forward(X, X[:3], ONES, None, 0, False), "residual must be"),
        (lambda: norm_cpu.forward(X, None, ONES.half(), None, 0, False), "weight must be"),
        (lambda: norm_cpu.forward(X, None, ONES, ONES[:3], 0, False), "bias must be"),
        (
            lambda: norm_cpu.forward(torch.ones(4, 16)[:, ::2], None, ONES, None, 0, False),
            "x must be contiguous",
        ),
        (
            lambda: norm_cpu.backward(X, None, X, ONES, None, torch.ones(3, 2), 0, False),
            "stats must be",
        ),
        (
            lambda: norm_cpu.backward(X[:3], None, X, ONES, None, torch.ones(4, 2), 0, False),
            "grad_normed must be",
        ),
        (lambda: rotary_cpu.turn(X, *TURN, torch.arange(4)), "x must be \\(T, H, D\\)"),
        (lambda: rotary_cpu.turn(X[:, None], *TURN, torch.arange(5)), "positions must be"),
        (lambda: rotary_cpu.turn(X[:, None], *TURN, torch.arange(4).int()), "positions must be"),
        (lambda: rotary_cpu.turn(X[:, None], *TURN, torch.arange(4) + 1), "run from 1 to 4"),
        (lambda: rotary_cpu.turn(X[:, None], *TURN, torch.arange(4) - 1), "run from -1 to 2"),
        (lambda: rotary_cpu.turn(X[:, None], TURN[0][:, :3], TURN[1], torch.arange(4)), "cos must"),
        (lambda: rotary_cpu.turn(X[:, None], TURN[0], TURN[1][:3], torch.arange(4)), "sin must"),
    ],
)
def test_bad_input_is_refused_before_an_address_is_read(
    call: Callable[[], object], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        call()


def test_what_the_kernels_cannot_serve_goes_to_torch_or_says_why() -> None:
    wide = torch.randn(3, 8, dtype=torch.float64)
    cos, sin = (torch.ones(3, 4, requires_grad=True) for _ in range(2))
    for call, why in (
        (lambda b: gated_activation(wide, wide, "gelu", backend=b), "no torch.float64 kernel"),
        (lambda b: add_rms_norm(wide, None, wide[0], 1e-5, backend=b), "no torch.float64 kernel"),
        (
            lambda b: add_rms_norm(wide.half(), wide.float(), wide[0].half(), 1e-5, backend=b),
            "x is torch.float16 and residual torch.float32",
        ),
        (
            lambda b: rotary(torch.ones(3, 1, 8), cos, sin, torch.arange(3), backend=b),
            "no gradient of cos",
        ),
    ):
        call(None)
        with pytest.raises(BackendError, match=why):
            call("cpu")
