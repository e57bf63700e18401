"""`gradient_of` against torch.autograd.grad."""

from __future__ import annotations

import pytest
import torch

from pyenc.ops.gradient import gradient_of
from tests.seeds import seed


@pytest.mark.parametrize("grad_mode", [True, False])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_the_same_as_torchs(dtype: torch.dtype, grad_mode: bool) -> None:
    """Also inside a backward, where nothing is recorded; None where there is no way to a leaf."""
    torch.manual_seed(seed(0))
    x, y, other = (torch.randn(3, 5, dtype=dtype, requires_grad=True) for _ in range(3))
    made, onto = (x * y).tanh(), torch.randn(3, 5, dtype=dtype)
    leaves = [y, other, x]
    wanted = torch.autograd.grad(made, leaves, onto, allow_unused=True, retain_graph=True)
    with torch.set_grad_enabled(grad_mode):
        found = gradient_of(made, leaves, onto)
    assert [x is None for x in found] == [False, True, False]
    for ours, theirs in zip(found, wanted, strict=True):
        assert ours is theirs is None or torch.equal(ours, theirs)
        assert ours is None or not ours.requires_grad
