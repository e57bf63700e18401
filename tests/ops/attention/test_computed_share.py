"""`computed_share` answers for the backend that is named, or that `attention` would take."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import pyenc
from pyenc.errors import BackendError, InputError
from pyenc.ops import ALiBi, alibi_slopes, computed_share, extension

N = 900
BOUNDS = torch.tensor([0, N])


def inputs() -> tuple[Tensor, Tensor, Tensor]:
    q, k, v = (torch.randn(N, 2, 16) for _ in range(3))
    return q, k, v


@pytest.mark.parametrize("backend", ["torch", "reference"])
def test_these_compute_everything(backend: str) -> None:
    bias = ALiBi(alibi_slopes(2) * 8)
    assert computed_share(*inputs(), BOUNDS, bias=bias, backend=backend) == 1
    assert computed_share(*inputs(), BOUNDS, bias=bias, skip_eps=0.3, backend=backend) == 1


@pytest.mark.skipif(extension.load() is None, reason=extension.why_missing())
def test_the_cpu_kernels_leave_out_what_they_may() -> None:
    q, k, v = inputs()
    bias = ALiBi(alibi_slopes(2) * 8)
    shares = [
        computed_share(q, k, v, BOUNDS, bias=bias, skip_eps=eps, backend="cpu")
        for eps in (0, 2.0**-24, 2.0**-11, 0.3)
    ]
    assert shares[0] == 1
    assert shares == sorted(shares, reverse=True)
    assert shares[1] < 0.9
    assert computed_share(q, k, v, BOUNDS, bias=bias, backend="cpu") == shares[1]
    with pyenc.use_backend("cpu"):
        assert computed_share(q, k, v, BOUNDS, bias=bias) == shares[1]
    with pyenc.use_backend("torch"):
        assert computed_share(q, k, v, BOUNDS, bias=bias) == 1
    positions = 3 * torch.arange(N)
    farther = computed_share(q, k, v, BOUNDS, bias=bias, positions=positions, backend="cpu")
    assert farther < shares[1]


@pytest.mark.skipif(extension.load() is None, reason=extension.why_missing())
def test_keys_after_a_causal_query_are_not_looked_at() -> None:
    """But for those that share a tile with it: a half is hidden, and a longer text nears it."""
    q, k, v = (torch.randn(4 * N, 1, 16) for _ in range(3))
    shares = []
    for n in (N, 4 * N):
        for dtype in (torch.float32, torch.bfloat16):
            given = (x[:n].to(dtype) for x in (q, k, v))
            bounds = torch.tensor([0, n])
            shares.append(computed_share(*given, bounds, window=(-1, 0), backend="cpu"))
    assert all(0.5 < share < 0.75 for share in shares)
    assert shares[2] < shares[0]
    assert shares[3] < shares[1]


def test_what_is_wrong_is_named() -> None:
    q, k, v = inputs()
    with pytest.raises(InputError, match="skip_eps must be None or in"):
        computed_share(q, k, v, BOUNDS, skip_eps=2)
    with pytest.raises(BackendError, match="'flash_attn' backend cannot serve attention"):
        computed_share(q, k, v, BOUNDS, backend="flash_attn")
    with pytest.raises(InputError, match="cu_seqlens"):
        computed_share(q, k, v, torch.tensor([0, 5]))
    if extension.load() is not None:
        wide = tuple(x.double() for x in (q, k, v))
        with pytest.raises(BackendError, match="float64"):
            computed_share(*wide, BOUNDS, backend="cpu")
