"""Dropout in the Triton kernels: the forward's mask is the backward's, and as likely as asked."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

from pyenc.ops import ALiBi, alibi_slopes, attention

N, HEADS, P = 150, 2, 0.3


def call(
    qkv: list[Tensor], slopes: Tensor, seed: int, device: str, **more: Any
) -> tuple[Tensor, Tensor]:
    torch.manual_seed(seed)
    out, lse = attention(
        *qkv, torch.tensor([0, N], device=device), bias=ALiBi(slopes), dropout_p=P, skip_eps=0,
        return_lse=True, backend="triton", **more,
    )  # fmt: skip
    return out, lse


def mask(qk: list[Tensor], slopes: Tensor, seed: int, device: str) -> Tensor:
    """(H, N, N): what multiplies each weight, read off with unit vectors for values."""
    parts = []
    for first in range(0, N, 64):
        v = torch.zeros(N, HEADS, 64, device=device)
        for j in range(first, min(first + 64, N)):
            v[j, :, j - first] = 1
        q, k = (torch.nn.functional.pad(x, (0, 64 - x.shape[-1])) for x in qk)
        out, lse = call([q, k, v], slopes, seed, device, scale=qk[0].shape[-1] ** -0.5)
        parts.append(out[..., : min(64, N - first)])
    weight = torch.cat(parts, -1).permute(1, 0, 2)
    score = torch.einsum("ihd,jhd->hij", *qk) * qk[0].shape[-1] ** -0.5
    at = torch.arange(N, device=device)
    score = score - slopes[:, None, None] * (at[:, None] - at).abs()
    return weight / (score - lse.t()[..., None]).exp()


def test_the_backward_has_the_forwards_mask(device: str) -> None:
    qkv = [torch.randn(N, HEADS, 16, device=device) for _ in range(3)]
    slopes = 0.05 * alibi_slopes(HEADS).to(device)
    keep = mask(qkv[:2], slopes, 7, device).detach()
    kept = keep > 0.5
    assert torch.allclose(keep, kept / (1 - P), atol=1e-3)
    share = kept.float().mean().item()
    assert abs(share - (1 - P)) < 4 * (P * (1 - P) / kept.numel()) ** 0.5
    # Rows, columns and heads differ, and so do seeds.
    assert not torch.equal(kept[0], kept[1])
    assert not torch.equal(kept[0, 0], kept[0, 1])
    assert not torch.equal(kept, mask(qkv[:2], slopes, 8, device) > 0.5)

    leaves = [x.clone().requires_grad_() for x in (*qkv, slopes)]
    out, lse = call(leaves[:3], leaves[3], 7, device)
    g, g_lse = torch.randn_like(out), torch.randn_like(lse)
    got = torch.autograd.grad([out, lse], leaves, [g, g_lse])

    wide = [x.detach().double().requires_grad_() for x in leaves]
    at = torch.arange(N, device=device)
    score = torch.einsum("ihd,jhd->hij", *wide[:2]) * 16**-0.5
    score = score - wide[3][:, None, None] * (at[:, None] - at).abs()
    weight = score.softmax(-1) * (kept / (1 - P)).double()
    expected = torch.einsum("hij,jhd->ihd", weight, wide[2])
    wanted = torch.autograd.grad(
        [expected, score.logsumexp(-1).t()], wide, [g.double(), g_lse.double()]
    )
    torch.testing.assert_close(out.double(), expected, rtol=0, atol=1e-5)
    for a, b in zip(got, wanted, strict=True):
        torch.testing.assert_close(
            a.double(), b, rtol=0, atol=1e-5 * max(1.0, b.abs().max().item())
        )
