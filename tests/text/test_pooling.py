"""Packed states to vectors, against float64 by hand, with as many tokens left out as one likes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from pyenc.text.pooling import pool
from pyenc.text.recipe import POOLINGS, Recipe


def by_hand(states: np.ndarray, pooling: str, skip: int) -> np.ndarray:
    """One sequence, as sentence-transformers pools it where a prompt does not count."""
    if not len(states):
        return np.zeros(states.shape[1])
    if pooling == "cls":
        return states[skip if skip < len(states) else 0]
    if pooling == "lasttoken":
        return states[-1]
    kept = states[skip:]
    if pooling == "max":
        return kept.max(0)
    return kept.mean(0) if len(kept) else np.zeros(states.shape[1])


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("lengths", [[1], [5, 1, 9, 33, 2], [3, 0, 4], [7] * 6])
def test_left_out(pooling: str, dtype: torch.dtype, lengths: list[int]) -> None:
    hidden = (torch.randn(sum(lengths), 24) * 3).to(dtype)
    cu_seqlens = torch.tensor([0, *np.cumsum(lengths)])
    skips: list[int | Tensor] = [0, torch.zeros(len(lengths), dtype=torch.int64)]
    skips += [torch.randint(0, max(n, 1), (len(lengths),)) % torch.tensor(lengths).clamp(min=1)
              for n in (2, 4, 40)]  # fmt: skip
    if min(lengths) > 1 or pooling in ("mean", "cls", "lasttoken"):
        skips += [1, torch.ones(len(lengths), dtype=torch.int32)]
    if pooling != "max":
        skips += [50, torch.tensor([50, 0, 1, 2, 50, 3])[: len(lengths)]]
    rows = hidden.double().split(lengths)
    for skip in skips:
        each = skip.tolist() if isinstance(skip, Tensor) else [skip] * len(lengths)
        right = np.stack([by_hand(x.numpy(), pooling, s) for x, s in zip(rows, each, strict=True)])
        got = pool(hidden, cu_seqlens, Recipe(pooling=pooling), skip_tokens=skip)
        assert got.dtype == torch.promote_types(dtype, torch.float32)
        np.testing.assert_allclose(got.double().numpy(), right, rtol=0, atol=2e-5)
