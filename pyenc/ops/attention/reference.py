"""The oracle of attention: dense, as the formula reads, in the dtype given (float64 for the truth).

Nothing here is fast, and nothing here is shared with a backend. Shapes: T packed tokens, H heads, D
head dim, n tokens of one sequence.
"""

from __future__ import annotations

import itertools

import numpy as np
import torch
from einops import einsum, rearrange
from torch import Tensor

from .bias import ALiBi, RelativePositionBias
from .own_object import OwnBias, apply_own


def attention_reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens: Tensor,
    *,
    bias: ALiBi | RelativePositionBias | OwnBias | Tensor | None = None,
    positions: Tensor | None = None,
    scale: float | None = None,
    window: tuple[int, int] | None = None,
) -> tuple[Tensor, Tensor]:
    """softmax(scale * q k^T + bias) v for each sequence: out (T, H, D) and log-sum-exp (T, H)."""
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    outs, lses = [], []
    # Of no sequences as of one without tokens: no numbers, but of one graph with what they are of.
    bounds = cu_seqlens.tolist() if len(cu_seqlens) > 1 else [0, 0]
    for start, end in itertools.pairwise(bounds):
        n = end - start
        place = torch.arange(n, device=q.device)
        at = place if positions is None else positions[start:end].long()
        score = scale * einsum(q[start:end], k[start:end], "i h d, j h d -> h i j")
        if bias is not None and not isinstance(bias, (ALiBi, RelativePositionBias, Tensor)):
            score = apply_own(bias, score, at - at[:1], at - at[:1]).to(score.dtype)
        else:
            score = score + _dense_bias(bias, at, place, score)
        if window is not None:
            left, right = window
            ahead = rearrange(at, "j -> 1 j") - rearrange(at, "i -> i 1")
            outside = (ahead > right) if right >= 0 else torch.zeros_like(ahead, dtype=torch.bool)
            if left >= 0:
                outside = outside | (-ahead > left)
            score = score.masked_fill(outside, float("-inf"))
        outs.append(einsum(score.softmax(-1), v[start:end], "h i j, j h d -> i h d"))
        lses.append(rearrange(score.logsumexp(-1), "h i -> i h"))
    return torch.cat(outs), torch.cat(lses)


def _dense_bias(
    bias: ALiBi | RelativePositionBias | Tensor | None,
    at: Tensor,
    place: Tensor,
    score: Tensor,
) -> Tensor:
    """The bias of one sequence, (H, n, n); `at` its positions, `place` 0..n-1."""
    if bias is None:
        return score.new_zeros(())
    if isinstance(bias, Tensor):
        return _finite_as(score, bias[:, : len(place), : len(place)])
    if isinstance(bias, ALiBi):
        distance = (rearrange(at, "i -> i 1") - rearrange(at, "j -> 1 j")).abs()
        return -einsum(_finite_as(score, bias.slopes), distance.to(score.dtype), "h, i j -> h i j")
    ahead = rearrange(at, "j -> 1 j") - rearrange(at, "i -> i 1")
    # Positions with holes may lie far apart: only the distances that occur have a bucket here.
    distances, index = ahead.unique(return_inverse=True)
    buckets = [_t5_bucket(d, bias) for d in distances.tolist()]
    bucket = torch.tensor(buckets, dtype=torch.long, device=score.device)[index]
    return rearrange(_finite_as(score, bias.table[bucket]), "i j h -> h i j")


def _finite_as(score: Tensor, numbers: Tensor) -> Tensor:
    """Numbers in the scores' dtype; what is finite in a wider one stays so."""
    most = torch.finfo(score.dtype).max
    if torch.finfo(numbers.dtype).max > most:
        numbers = torch.where(numbers.isinf(), numbers, numbers.clamp(-most, most))
    return numbers.to(score.dtype)


def _t5_bucket(ahead: int, bias: RelativePositionBias) -> int:
    """Raffel et al.'s bucket of one signed distance, the logarithm in float32 as T5 takes it."""
    half = bias.table.shape[0] // 2
    exact, size = half // 2, abs(ahead)
    bucket = size
    if size >= exact:
        ratio = np.log(np.float32(size) / np.float32(exact))
        ratio = ratio / np.float32(np.log(bias.max_distance / exact))
        bucket = min(exact + int(ratio * np.float32(half - exact)), half - 1)
    return bucket + (half if ahead > 0 else 0)
