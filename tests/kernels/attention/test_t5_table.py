"""The gradient of T5's table in halves: what delta was rounded by adds up there, while ds cancels.

Near pairs and far ones apart, as tiles beyond the buckets' reach are; windows, which have none;
positions.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

pytest.importorskip("triton")

from pyenc.errors import BackendError
from pyenc.ops import RelativePositionBias, attention
from tests.kernels.attention.attention_case import DRAWS, Case
from tests.oracle import assert_right, margin
from tests.seeds import seed

LENGTHS = [37, 1, 245]
CLOSER = 100
"""How much closer than the rule wants: what a rounded delta leaves is no such thing in any draw."""
CALLS: list[dict[str, Any]] = [
    {},
    {"window": (1, 0)},
    {"window": (0, 1)},
    {"window": (9, 5)},
    {"window": (100, -1)},
    {"holes": True},
    {"holes": True, "window": (2, 1)},
]


@pytest.mark.parametrize("at", range(DRAWS))
@pytest.mark.parametrize("given", CALLS, ids=str)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_rounding_is_taken_back(
    dtype: torch.dtype, given: dict[str, Any], at: int, device: str
) -> None:
    torch.manual_seed(seed(at))
    case = Case(LENGTHS, "t5", device, dtype=dtype, dim=16, **given)
    oracle, naive = case.by_reference(torch.float64)[-1], case.by_reference(dtype)[-1]
    with margin(CLOSER):
        assert_right(case.by_kernel()[-1], naive, oracle, gradient=True, what="table")


@pytest.mark.parametrize("lengths", [[1], [2, 1, 1], [1, 3, 0, 2]], ids=str)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_of_few_tokens(dtype: torch.dtype, lengths: list[int], device: str) -> None:
    """Of one alone ds is what its log-sum-exp is due, whatever delta is."""
    torch.manual_seed(seed(7))
    Case(lengths, "t5", device, dtype=dtype, dim=16).check()


@pytest.mark.parametrize("learned", [False, True])
@pytest.mark.parametrize(
    ("buckets", "max_distance", "why"),
    [(8, 2**20 + 1, "up to 1048577 would be written down"), (132, 300, "132 buckets are more")],
)
def test_a_table_too_large_is_named(
    buckets: int, max_distance: int, why: str, learned: bool, device: str
) -> None:
    table = torch.randn(buckets, 2, device=device, requires_grad=learned)
    q = torch.randn(9, 2, 16, device=device)
    given: dict[str, Any] = {
        "cu_seqlens": torch.tensor([0, 9], device=device),
        "bias": RelativePositionBias(table, max_distance),
    }
    with torch.set_grad_enabled(learned):
        with pytest.raises(BackendError, match=why):
            attention(q, q, q, **given, backend="triton")
        right = attention(q, q, q, **given, backend="reference")
        torch.testing.assert_close(attention(q, q, q, **given), right)
