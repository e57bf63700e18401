"""Packed states to vectors, against float64 by hand, with as many tokens left out as one likes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from pyenc.errors import InputError
from pyenc.text.pooling import pool, pooled
from pyenc.text.recipe import POOLINGS, Recipe

LENGTHS = [5, 1, 9, 33, 2]


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
    if not len(kept):
        return np.zeros(states.shape[1])
    if pooling == "weightedmean":  # a token keeps its number
        numbers = np.arange(1, len(states) + 1)[skip:]
        return (numbers[:, None] * kept).sum(0) / numbers.sum()
    if pooling == "mean_sqrt_len_tokens":
        return kept.sum(0) / np.sqrt(len(kept))
    return kept.mean(0)


def of_all(hidden: Tensor, lengths: list[int], pooling: str, skip: int | Tensor) -> np.ndarray:
    each = skip.tolist() if isinstance(skip, Tensor) else [skip] * len(lengths)
    rows = hidden.detach().double().split(lengths)
    return np.stack([by_hand(x.numpy(), pooling, s) for x, s in zip(rows, each, strict=True)])


def bounds(lengths: list[int]) -> Tensor:
    return torch.tensor([0, *np.cumsum(lengths)])


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("lengths", [[1], LENGTHS, [3, 0, 4], [7] * 6])
def test_left_out(pooling: str, dtype: torch.dtype, lengths: list[int]) -> None:
    hidden = (torch.randn(sum(lengths), 24) * 3).to(dtype)
    skips: list[int | Tensor] = [0, torch.zeros(len(lengths), dtype=torch.int64)]
    skips += [torch.randint(0, max(n, 1), (len(lengths),)) % torch.tensor(lengths).clamp(min=1)
              for n in (2, 4, 40)]  # fmt: skip
    if min(lengths) > 1 or pooling != "max":
        skips += [1, torch.ones(len(lengths), dtype=torch.int32)]
    if pooling != "max":
        skips += [50, torch.tensor([50, 0, 1, 2, 50, 3])[: len(lengths)]]
    for skip in skips:
        right = of_all(hidden, lengths, pooling, skip)
        got = pool(hidden, bounds(lengths), Recipe(pooling=pooling), skip_tokens=skip)
        assert got.dtype == torch.promote_types(dtype, torch.float32)
        np.testing.assert_allclose(got.double().numpy(), right, rtol=0, atol=2e-5)


@pytest.mark.parametrize("skip", [0, 1, torch.tensor([2, 0, 4, 1, 1])])
@pytest.mark.parametrize(
    "poolings",
    [("cls", "mean"), ("mean_sqrt_len_tokens", "mean"), ("weightedmean",) * 2, POOLINGS[::-1]],
)
def test_several_side_by_side(poolings: tuple[str, ...], skip: int | Tensor) -> None:
    poolings = tuple(each for each in poolings if each != "max" or isinstance(skip, Tensor))
    hidden = torch.randn(sum(LENGTHS), 8, dtype=torch.float64)
    right = np.concatenate([of_all(hidden, LENGTHS, each, skip) for each in poolings], axis=1)
    got = pool(hidden, bounds(LENGTHS), Recipe(pooling=poolings), skip_tokens=skip)
    np.testing.assert_allclose(got.numpy(), right, rtol=0, atol=1e-9)
    assert Recipe(pooling=poolings).width(8) == right.shape[1]


@pytest.mark.parametrize("pooling", POOLINGS)
def test_gradients(pooling: str) -> None:
    """Against central differences, a prompt left out and not."""
    lengths = [3, 1, 5]
    hidden = torch.randn(sum(lengths), 3, dtype=torch.float64, requires_grad=True)
    for skip in (0, torch.tensor([1, 0, 2])):
        assert torch.autograd.gradcheck(
            lambda x, skip=skip: pooled(x, bounds(lengths), (pooling,), skip_tokens=skip), hidden
        )


def test_no_such_pooling() -> None:
    with pytest.raises(InputError, match="pooling 'attention' is not served; served: mean, cls"):
        pool(torch.randn(3, 2), bounds([3]), Recipe(pooling=("mean", "attention")))
