"""Heads of queries that share one of keys and values, in the Triton kernels."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

from pyenc.ops import ALiBi, alibi_slopes, attention
from pyenc.ops.attention.shared_heads import repeated
from tests.kernels.attention.attention_case import DTYPES

BOUNDS = [0, 21, 22, 22, 70]
CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "window": {"window": (5, 20)},
    "causal": {"window": (-1, 0)},
    "alibi": {"bias": ALiBi(alibi_slopes(6))},
}


@pytest.mark.parametrize("heads", [1, 3])
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_bits_of_repeated_heads(
    dtype: torch.dtype, case: str, heads: int, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """k and v are views of one product, as models have them."""
    qkv = torch.randn(BOUNDS[-1], 6 + 2 * heads, 12, device=device).to(dtype)
    q, k, v = qkv.split((6, heads, heads), 1)
    ends = torch.tensor(BOUNDS, device=device)
    named = {**CASES[case]}
    if "bias" in named:
        named["bias"] = ALiBi(named["bias"].slopes.to(device))
    way, copied = sys.modules["pyenc.ops.attention.straight"], []
    real = way.repeated  # type: ignore[attr-defined]
    monkeypatch.setattr(way, "repeated", lambda *given: copied.append(1) or real(*given))

    def run(k: Tensor, v: Tensor) -> Any:
        return attention(q, k, v, ends, **named, return_lse=True, backend="triton")

    with torch.no_grad():
        found = run(k, v)
        assert len(copied) == (2 if case == "alibi" else 0)
        wanted = run(repeated(k, 6), repeated(v, 6))
    for one, other in zip(found, wanted, strict=True):
        assert torch.equal(one, other)
    # With a gradient they are repeated, and theirs are added up.
    leaves = [t.detach().clone().requires_grad_() for t in (k, v)]
    out, _ = run(*leaves)
    torch.testing.assert_close(out, found[0])
    for leaf, grad in zip(leaves, torch.autograd.grad(out.float().sum(), leaves), strict=True):
        assert grad.shape == leaf.shape
