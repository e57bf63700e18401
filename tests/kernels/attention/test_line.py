"""A bias by distance through the Triton kernels: a line of numbers that is looked up."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("triton")

from pyenc.errors import BackendError
from pyenc.ops import attention, computed_share
from tests.oracle import assert_right


class Lopsided(nn.Module):
    """Steep to the left, a logarithm to the right."""

    def __init__(self, steep: float, learned: bool = False) -> None:
        super().__init__()
        slopes = steep * torch.tensor([0.1, 0.7])
        self.slopes = nn.Parameter(slopes, requires_grad=learned)

    def along(self, offsets: Tensor) -> Tensor:
        slope = self.slopes[:, None]
        back, on = (-offsets).clamp(min=0), offsets.clamp(min=0)
        return -slope * back - slope * 3 * on.to(slope.dtype).log1p()


def run(
    bias: nn.Module,
    qkv: list[Tensor],
    backend: str,
    dtype: torch.dtype,
    device: str,
    **more: object,
) -> list[Tensor]:
    inputs = [x.to(device, dtype).requires_grad_() for x in qkv]
    bounds = torch.tensor([0, 61, 61, 200], device=device)
    bias = bias.to(device, torch.promote_types(dtype, torch.float32))
    out, lse = attention(
        *inputs, bounds, bias=bias, backend=backend, skip_eps=0, return_lse=True, **more
    )  # type: ignore[arg-type]
    torch.manual_seed(5)
    weight = torch.randn(out.shape).to(device, dtype)
    grads = torch.autograd.grad((out * weight).sum() + lse.sum(), inputs)
    return [x.detach().cpu() for x in (out, lse, *grads)]


@pytest.mark.parametrize("holes", [False, True])
def test_against_the_oracle(holes: bool, device: str) -> None:
    bias, more = Lopsided(1.0), {}
    if holes:
        more["positions"] = torch.randint(1, 4, (200,)).cumsum(0).to(device)
    qkv = [2 * torch.randn(200, 2, 16), *(torch.randn(200, 2, 16) for _ in range(2))]
    got = run(bias, qkv, "triton", torch.float32, device, **more)
    naive = run(bias, qkv, "reference", torch.float32, device, **more)
    oracle = run(bias, qkv, "reference", torch.float64, device, **more)
    for number, three in enumerate(zip(got, naive, oracle, strict=True)):
        assert_right(*three, gradient=number > 1, what=str(number))


def test_far_keys_are_left_out(device: str) -> None:
    n, eps = 600, 2.0**-11
    q, k, v = (x.to(device) for x in (2 * torch.randn(n, 2, 16), *torch.randn(2, n, 2, 16)))
    bounds, bias = torch.tensor([0, n], device=device), Lopsided(3.0).to(device)
    share = computed_share(q, k, v, bounds, bias=bias, skip_eps=eps, backend="triton")
    assert share < 1
    out, lse = attention(
        q, k, v, bounds, bias=bias, skip_eps=eps, return_lse=True, backend="triton"
    )
    whole, all_of_it = attention(
        *(x.double() for x in (q, k, v)), bounds, bias=bias.double(), return_lse=True,
        backend="reference",
    )  # fmt: skip
    assert (all_of_it - lse).max() <= -math.log1p(-eps) + 1e-5
    assert (out - whole).abs().max() <= 2 * eps * v.abs().max() + 1e-5


def test_a_line_that_is_learned_is_refused_by_name(device: str) -> None:
    q = torch.randn(5, 2, 16, device=device)
    bias = Lopsided(1.0, learned=True).to(device)
    with pytest.raises(BackendError, match=r"Lopsided has no method kernel\(\), and a line"):
        attention(q, q, q, torch.tensor([0, 5], device=device), bias=bias, backend="triton")
    with torch.no_grad():
        attention(q, q, q, torch.tensor([0, 5], device=device), bias=bias, backend="triton")
