"""The passes before the main kernels: what they find in texts of many grains, in which order."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

from pyenc_kernels import attention as kernels
from pyenc_kernels.score_function import ALIBI

GRAIN = 128
LENGTHS = [34 * GRAIN + 5, 1, 300]
"""On one side of a grain more others than are looked at in one turn of each pass, 8 and 32."""
SLOPES = [0.7, 0.02, 0.0]
EPS = 2.0**-11
MARGIN = 0.05
"""Of a bound in base 2, for what the kernels' own safety and rounding may add."""


def counted(q: Tensor, k: Tensor, slope: float, shift: float) -> list[list[int]]:
    """[first, last) of each grain of one head's sequence by the bound of ranges_kernel.py, pair of
    grains by pair, in float64; `shift` is added to what may be left out."""
    n, dim = k.shape
    grains = -(-n // GRAIN)
    spread = (torch.arange(32) * n) // 32
    center = k[spread].mean(0)
    apart = (k - center).norm(dim=1)
    reach = [float(apart[g * GRAIN : (g + 1) * GRAIN].max()) for g in range(grains)]
    scale, mu = dim**-0.5 / math.log(2), slope / math.log(2)
    budget = math.log2(EPS / 2) + shift
    found = []
    for own in range(grains):
        rows = torch.arange(own * GRAIN, min((own + 1) * GRAIN, n))
        distance = (rows[:, None] - rows).abs()
        top = torch.logsumexp((q[rows] @ k[rows].T * scale - mu * distance) * math.log(2), 1)
        lse = top / math.log(2)
        met = {own}
        for other in range(grains):
            if other == own:
                continue
            near = other * GRAIN + (GRAIN - 1 if other < own else 0)
            most = max(reach[: other + 1] if other < own else reach[other:])
            bound = q[rows] @ center * scale + q[rows].norm(dim=1) * scale * most
            if mu > 0:
                bound = bound - math.log2(1 - 2**-mu) - mu * (rows - near).abs()
            if mu <= 0 or bool((bound > lse + budget).any()):
                met.add(other)
        assert sorted(met) == list(range(min(met), max(met) + 1))  # the bound falls outward
        found.append([min(met), max(met) + 1])
    return found


def test_the_bound_is_met_grain_by_grain(device: str) -> None:
    torch.manual_seed(0)
    tokens, heads, dim = sum(LENGTHS), len(SLOPES), 16
    q, k = torch.randn(tokens, heads, dim) * 2, torch.randn(tokens, heads, dim)
    k[3000:3100] *= 6  # what lies before it, seen from the right, has to wait for it
    cu_seqlens = torch.tensor([0, *torch.tensor(LENGTHS).cumsum(0)], dtype=torch.int32)
    params = torch.tensor(SLOPES)[:, None].to(device)
    terms = kernels.Terms(scale=dim**-0.5, bias=ALIBI, params=params, skip_eps=EPS)
    ranges = kernels.ranges(q.to(device), k.to(device), cu_seqlens.to(device), terms)
    assert ranges is not None
    met = ranges.met.cpu()
    shares = set()
    for number, (begin, n) in enumerate(zip(cu_seqlens.tolist(), LENGTHS, strict=False)):
        slot = begin // GRAIN + number
        for head, slope in enumerate(SLOPES):
            of = [x[begin : begin + n, head].double() for x in (q, k)]
            least, most = (counted(*of, slope, by) for by in (MARGIN, -MARGIN))
            for grain, (low, high) in enumerate(zip(least, most, strict=True)):
                first, last = met[head, slot + grain].tolist()
                assert high[0] <= first <= low[0], (number, head, grain)
                assert low[1] <= last <= high[1], (number, head, grain)
                shares.add(last - first)
    assert {1, 35} <= shares
    assert len(shares) > 12


@pytest.mark.parametrize(("heads", "slots"), [(1, 1), (3, 11), (2, 200), (1, 257)])
def test_the_longest_come_first_and_equals_as_they_lie(heads: int, slots: int, device: str) -> None:
    torch.manual_seed(slots)
    first = torch.randint(0, 5, (heads, slots, 1))
    met = torch.cat([first, first + torch.randint(0, 7, (heads, slots, 1))], -1)
    ordered = kernels.ordered(met.int().to(device))
    lengths = (met[..., 1] - met[..., 0]).flatten()
    wanted = torch.sort(lengths, descending=True, stable=True).indices
    assert ordered.order.cpu().tolist() == wanted.tolist()
