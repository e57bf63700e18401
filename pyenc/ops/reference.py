"""The oracle: every op dense, as the formula reads, in the dtype given (float64 for the truth).

Nothing here is fast, and nothing here is shared with a backend. Shapes: T packed tokens, B
sequences, H heads, D head dim, C channels, F feed-forward, n tokens of one sequence.
"""

from __future__ import annotations

import itertools

import numpy as np
import torch
from einops import einsum, rearrange, reduce
from torch import Tensor

from .bias import ALiBi, RelativePositionBias, ScoreBias, ScoreMap, apply_own


def attention_reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens: Tensor,
    *,
    bias: ALiBi | RelativePositionBias | ScoreBias | ScoreMap | Tensor | None = None,
    positions: Tensor | None = None,
    scale: float | None = None,
    window: tuple[int, int] | None = None,
) -> tuple[Tensor, Tensor]:
    """softmax(scale * q k^T + bias) v for each sequence: out (T, H, D) and log-sum-exp (T, H)."""
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    outs, lses = [], []
    bounds = cu_seqlens.tolist()
    for start, end in itertools.pairwise(bounds):
        n = end - start
        place = torch.arange(n, device=q.device)
        at = place if positions is None else positions[start:end]
        score = scale * einsum(q[start:end], k[start:end], "i h d, j h d -> h i j")
        if bias is not None and not isinstance(bias, (ALiBi, RelativePositionBias, Tensor)):
            score = apply_own(bias, score, at - at[:1], at - at[:1])
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
    if not outs:
        return q.new_zeros(q.shape), q.new_zeros(q.shape[:2])
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
        return bias[:, : len(place), : len(place)].to(score.dtype)
    if isinstance(bias, ALiBi):
        distance = (rearrange(at, "i -> i 1") - rearrange(at, "j -> 1 j")).abs()
        return -einsum(bias.slopes.to(score.dtype), distance.to(score.dtype), "h, i j -> h i j")
    ahead = rearrange(at, "j -> 1 j") - rearrange(at, "i -> i 1")
    bucket = {d: _t5_bucket(d, bias) for d in set(ahead.flatten().tolist())}
    index = torch.tensor([bucket[d] for d in ahead.flatten().tolist()], dtype=torch.long)
    picked = bias.table[index.to(score.device)].to(score.dtype)
    return rearrange(picked, "(i j) h -> h i j", i=len(place), j=len(place))


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


def activation_reference(x: Tensor, activation: str) -> Tensor:
    """GELU x Phi(x) by definition, its tanh approximation, SiLU x sigmoid(x), ReLU max(x, 0)."""
    if activation == "gelu":
        return x * (1 + torch.special.erf(x * 2**-0.5)) / 2
    if activation == "gelu_tanh":
        return x * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (x + 0.044715 * x**3))) / 2
    if activation == "silu":
        return x / (1 + torch.exp(-x))
    if activation == "relu":
        return torch.where(x > 0, x, torch.zeros_like(x))
    raise ValueError(f"unknown activation {activation!r}")


def gated_activation_reference(gate: Tensor, value: Tensor, activation: str) -> Tensor:
    """activation(gate) * value, any equal shapes."""
    return activation_reference(gate, activation) * value


def linear_reference(
    x: Tensor, weight: Tensor, bias: Tensor | None, activation: str | None
) -> Tensor:
    """x (..., C), weight (F, C), bias (F,): activation(x W^T + b), (..., F)."""
    y = einsum(x, weight, "... c, f c -> ... f")
    if bias is not None:
        y = y + bias
    return y if activation is None else activation_reference(y, activation)


def gated_linear_reference(
    x: Tensor, weight: Tensor, bias: Tensor | None, activation: str, gate_first: bool
) -> Tensor:
    """x (T, C), weight (2F, C), bias (2F,): activation(gate) * value, (T, F)."""
    both = einsum(x, weight, "t c, f c -> t f")
    if bias is not None:
        both = both + bias
    first, second = rearrange(both, "t (two f) -> two t f", two=2)
    gate, value = (first, second) if gate_first else (second, first)
    return gated_activation_reference(gate, value, activation)


def add_layer_norm_reference(
    x: Tensor, residual: Tensor | None, weight: Tensor, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor]:
    """(normed, sum): layer normalisation of x + residual over the last axis (Ba et al. 2016)."""
    total = x if residual is None else x + residual
    centred = total - reduce(total, "... c -> ... 1", "mean")
    variance = reduce(centred**2, "... c -> ... 1", "mean")
    normed = centred / torch.sqrt(variance + eps) * weight
    return (normed if bias is None else normed + bias), total


def add_rms_norm_reference(
    x: Tensor, residual: Tensor | None, weight: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """(normed, sum): root-mean-square normalisation of x + residual (Zhang & Sennrich 2019)."""
    total = x if residual is None else x + residual
    square = reduce(total**2, "... c -> ... 1", "mean")
    return total / torch.sqrt(square + eps) * weight, total


def rotary_reference(x: Tensor, cos: Tensor, sin: Tensor, positions: Tensor) -> Tensor:
    """x (T, H, D), tables (P, D/2): pair (d, d + D/2) of token t turned by its angle."""
    first, second = rearrange(x, "t h (two d) -> two t h d", two=2)
    c = rearrange(cos[positions], "t d -> t 1 d").to(x.dtype)
    s = rearrange(sin[positions], "t d -> t 1 d").to(x.dtype)
    return torch.cat([first * c - second * s, second * c + first * s], dim=-1)


def segment_mean_reference(
    x: Tensor, cu_seqlens: Tensor, weights: Tensor | None = None, normalize: bool = False
) -> Tensor:
    """x (T, C): sum_t w_t x_t / sum_t w_t of each sequence, (B, C); zero weight gives zeros."""
    bounds = cu_seqlens.tolist()
    rows = []
    for start, end in itertools.pairwise(bounds):
        w = torch.ones(end - start, dtype=x.dtype, device=x.device)
        if weights is not None:
            w = weights[start:end].to(x.dtype)
        total = w.sum()
        row = einsum(w, x[start:end], "t, t c -> c")
        row = row / total if float(total.detach()) != 0 else torch.zeros_like(row)
        if normalize:
            row = row / row.norm().clamp(min=1e-12)
        rows.append(row)
    return torch.stack(rows) if rows else x.new_zeros(0, x.shape[1])
