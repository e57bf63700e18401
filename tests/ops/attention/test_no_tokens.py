"""`attention` of no tokens: an answer and gradients of no tokens, however they lie."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from pyenc.ops import ALiBi, RelativePositionBias, attention, extension
from tests.ops.attention.test_attention import Cap, Root, cu_seqlens

H, D = 2, 8

LAYOUTS: dict[str, Callable[[], Tensor]] = {
    "contiguous": lambda: torch.randn(0, H, D),
    # `contiguous` leaves the strides of an empty tensor as they are.
    "every second": lambda: torch.randn(0, H, D, 2)[..., 0],
    "turned": lambda: torch.randn(D, H, 0).permute(2, 1, 0),
}
BIASES: dict[str, object] = {
    "none": None,
    "alibi": ALiBi(torch.ones(H)),
    "t5": RelativePositionBias(torch.ones(32, H)),
    "dense": torch.ones(H, 0, 0),
    "own": Root(torch.ones(H)),
    "map": Cap(torch.ones(H)),
}


@pytest.mark.parametrize("sequences", [0, 1, 2])
@pytest.mark.parametrize("bias", BIASES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("backend", ["cpu", "torch", "reference"])
def test_no_tokens(backend: str, layout: str, bias: str, sequences: int) -> None:
    if backend == "cpu" and extension.load() is None:
        pytest.skip(extension.why_missing())
    q, k, v = (LAYOUTS[layout]().requires_grad_() for _ in range(3))
    out, lse = attention(
        q, k, v, cu_seqlens([0] * sequences), bias=BIASES[bias], return_lse=True, backend=backend
    )  # type: ignore[arg-type]
    assert out.shape == q.shape
    assert lse.shape == q.shape[:2]
    for grad in torch.autograd.grad([out.sum(), lse.sum()], (q, k, v), allow_unused=True):
        assert grad is None or grad.shape == q.shape


@pytest.mark.parametrize("sequences", [0, 1])
@pytest.mark.parametrize("make", [ALiBi, lambda x: RelativePositionBias(x.expand(8, H)), Root])
@pytest.mark.parametrize("backend", ["cpu", "torch", "reference"])
def test_a_bias_has_a_gradient_of_zeros(
    backend: str, make: Callable[[Tensor], object], sequences: int
) -> None:
    if backend == "cpu" and extension.load() is None:
        pytest.skip(extension.why_missing())
    learned, q = torch.ones(H, requires_grad=True), torch.randn(0, H, D)
    out = attention(q, q, q, cu_seqlens([0] * sequences), bias=make(learned), backend=backend)  # type: ignore[arg-type]
    assert isinstance(out, Tensor)
    (grad,) = torch.autograd.grad(out.sum(), learned)
    assert torch.equal(grad, torch.zeros(H))
