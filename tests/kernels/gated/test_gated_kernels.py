"""The Triton kernels of the gated activation against its float64 oracle, forward and backward."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

from pyenc.ops import ACTIVATIONS, gated_activation
from tests.kernels.attention.attention_case import DTYPES
from tests.oracle import assert_right


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_against_the_oracle(dtype: torch.dtype, activation: str, device: str) -> None:
    for rows, columns in ((1, 1), (3, 17), (5, 1100), (70, 33), (0, 8), (3, 0)):
        x = 3 * torch.randn(rows, 2 * columns, device=device).to(dtype)
        weight = torch.randn(rows, columns, device=device).to(dtype)

        def run(
            backend: str, working: torch.dtype, x: Tensor = x, weight: Tensor = weight
        ) -> list[Tensor]:
            leaf = x.to(working).requires_grad_()
            value, gate = leaf.chunk(2, -1)
            out = gated_activation(gate, value, activation, backend=backend)
            (grad,) = torch.autograd.grad(out, leaf, weight.to(working))
            return [out.detach(), grad]

        for i, three in enumerate(
            zip(
                run("triton", dtype),
                run("torch", dtype),
                run("reference", torch.float64),
                strict=True,
            )
        ):
            assert_right(*three, gradient=i == 1, what=f"{(rows, columns)} {i}")


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_far_out_and_where_nothing_is_a_number(activation: str, device: str) -> None:
    x = torch.tensor([-1e30, -500.0, -40.0, -9.0, 0.0, 9.0, 40.0, 500.0, 1e30, float("nan")])
    gate = x.to(device).requires_grad_()
    out = gated_activation(gate, torch.ones_like(gate), activation, backend="triton")
    (grad,) = torch.autograd.grad(out.sum(), gate)
    right = [0.0, 0, 0, 0, 0, 9, 40, 500, 1e30]
    torch.testing.assert_close(
        out.detach().cpu()[:-1], torch.tensor(right), rtol=1e-3, atol=2e-3, equal_nan=False
    )
    assert out[-1].isnan()
    torch.testing.assert_close(grad.cpu()[:4], torch.zeros(4), rtol=0, atol=2e-3)
    torch.testing.assert_close(grad.cpu()[5:9], torch.ones(4), rtol=0, atol=2e-3)
