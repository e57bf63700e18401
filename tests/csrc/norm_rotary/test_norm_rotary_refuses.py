"""The launcher of the heads' norm and rotation refuses what could make the C++ read elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from pyenc.errors import BackendError, InputError
from pyenc.ops import extension, rms_norm_rotary
from pyenc.ops.norm_rotary import cpu

pytestmark = pytest.mark.skipif(extension.load() is None, reason=extension.why_missing())

RIGHT: dict[str, Any] = {
    "x": torch.randn(4, 3, 8), "gain": torch.ones(8), "k_gain": torch.ones(8), "k_heads": 1,
    "cos": torch.ones(4, 4), "sin": torch.zeros(4, 4), "positions": torch.arange(4), "eps": 1e-6,
}  # fmt: skip


def forward(**other: Any) -> Tensor:
    return cpu.forward(**(RIGHT | other))


def backward(grad_out: Tensor, **other: Any) -> Any:
    return cpu.backward(grad_out, **(RIGHT | other))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: forward(x=RIGHT["x"][0]), "x must be \\(T, H, D\\)"),
        (lambda: forward(x=RIGHT["x"].transpose(1, 2)), "x must be \\(T, H, D\\)"),
        (lambda: forward(x=RIGHT["x"].double()), "x must be float32, bfloat16"),
        (lambda: forward(k_gain=None), "k_heads must be from 0 to 3"),
        (lambda: forward(k_heads=4), "k_heads must be from 0 to 3"),
        (lambda: forward(k_heads=-1), "k_heads must be from 0 to 3"),
        (lambda: forward(gain=torch.ones(7)), "gain must be"),
        (lambda: forward(gain=torch.ones(8).bfloat16()), "gain must be"),
        (lambda: forward(k_gain=torch.ones(9)), "k_gain must be"),
        (lambda: forward(gain=torch.ones(16)[::2]), "gain must be contiguous"),
        (lambda: forward(positions=torch.arange(5)), "positions must be"),
        (lambda: forward(positions=torch.arange(4).int()), "positions must be"),
        (lambda: forward(positions=torch.arange(4) + 1), "run from 1 to 4"),
        (lambda: forward(positions=torch.arange(4) - 1), "run from -1 to 2"),
        (lambda: forward(cos=torch.ones(4, 3)), "cos must"),
        (lambda: forward(sin=torch.ones(3, 4)), "sin must"),
        (lambda: backward(torch.ones(4, 3, 6)), "grad_out must be"),
        (lambda: backward(torch.ones(4, 3, 8).half()), "grad_out must be"),
        (lambda: backward(torch.ones(3, 4, 8).transpose(0, 1)), "grad_out must be contiguous"),
    ],
)
def test_bad_input_is_refused_before_an_address_is_read(
    call: Callable[[], object], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        call()


def test_what_the_kernel_cannot_serve_goes_to_torch_or_says_why() -> None:
    cos, sin = (torch.ones(3, 4, requires_grad=True) for _ in range(2))
    call = torch.ones(3, 1, 8), torch.ones(8), cos, sin, torch.arange(3), 1e-6
    rms_norm_rotary(*call).sum().backward()
    assert cos.grad is not None
    with pytest.raises(BackendError, match="no gradient of cos"):
        rms_norm_rotary(*call, backend="cpu")
