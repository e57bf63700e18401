"""The launcher of the rotary embedding refuse what could make the C++ read elsewhere."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from pyenc.errors import BackendError, InputError
from pyenc.ops import extension, rotary
from pyenc.ops.rotary import cpu

pytestmark = pytest.mark.skipif(extension.load() is None, reason=extension.why_missing())

X = torch.randn(4, 8)
TURN = torch.ones(4, 4), torch.zeros(4, 4)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: cpu.turn(X, *TURN, torch.arange(4)), "x must be \\(T, H, D\\)"),
        (lambda: cpu.turn(X[:, None], *TURN, torch.arange(5)), "positions must be"),
        (lambda: cpu.turn(X[:, None], *TURN, torch.arange(4).int()), "positions must be"),
        (lambda: cpu.turn(X[:, None], *TURN, torch.arange(4) + 1), "run from 1 to 4"),
        (lambda: cpu.turn(X[:, None], *TURN, torch.arange(4) - 1), "run from -1 to 2"),
        (lambda: cpu.turn(X[:, None], TURN[0][:, :3], TURN[1], torch.arange(4)), "cos must"),
        (lambda: cpu.turn(X[:, None], TURN[0], TURN[1][:3], torch.arange(4)), "sin must"),
    ],
)
def test_bad_input_is_refused_before_an_address_is_read(
    call: Callable[[], object], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        call()


def test_what_the_kernel_cannot_serve_goes_to_torch_or_says_why() -> None:
    cos, sin = (torch.ones(3, 4, requires_grad=True) for _ in range(2))
    rotary(torch.ones(3, 1, 8), cos, sin, torch.arange(3))
    with pytest.raises(BackendError, match="no gradient of cos"):
        rotary(torch.ones(3, 1, 8), cos, sin, torch.arange(3), backend="cpu")
