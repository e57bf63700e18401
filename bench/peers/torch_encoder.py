"""Jina-small's shape in plain torch: with SDPA, eager, compiled, on the CPU.

Shapes: B rows, N padded length, H heads, D head dim, C channels, T tokens of all texts.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import pyenc
from bench.peers.encoder_call import Ids, padded
from pyenc.ops import alibi_slopes


def plain(dtype: torch.dtype, *, eager: bool = False) -> Callable[[pyenc.Encoder], Ids]:
    """torch as one would write it by hand, with a dense bias."""

    def load(encoder: pyenc.Encoder) -> Ids:
        return padded(PlainEncoder(copy.deepcopy(encoder).to(dtype), eager))

    return load


def compiled(dtype: torch.dtype) -> Callable[[pyenc.Encoder], Ids]:
    """The same through torch.compile, the weights frozen into it; compiled for each shape."""

    def load(encoder: pyenc.Encoder) -> Ids:
        import torch._dynamo
        import torch._inductor.config

        torch._inductor.config.freezing = True
        torch._dynamo.config.recompile_limit = 64
        model = PlainEncoder(copy.deepcopy(encoder).to(dtype), eager=False)
        for parameter in model.parameters():
            parameter.requires_grad_(False)
        forward = torch.compile(model.layers, dynamic=False)

        def run(ids_BN: Tensor, mask_BN: Tensor | None) -> Tensor:
            return forward(ids_BN, model.bias(ids_BN.shape[1], mask_BN))

        return padded(run, torch.no_grad)

    return load


class PlainEncoder(nn.Module):
    """The same function with the same weights as its author would write it in plain torch.

    A dense ALiBi bias (1, H, N, N), made once and kept, goes to `scaled_dot_product_attention` or
    to softmax(QK^T + bias) V.
    """

    def __init__(self, encoder: pyenc.Encoder, eager: bool) -> None:
        super().__init__()
        self.encoder = encoder
        self.eager = eager

    def forward(self, ids_BN: Tensor, mask_BN: Tensor | None) -> Tensor:
        return self.layers(ids_BN, self.bias(ids_BN.shape[1], mask_BN))

    def layers(self, ids_BN: Tensor, bias: Tensor) -> Tensor:
        """Under a bias that can be added to (B, H, N, N) scores."""
        e = self.encoder.embeddings
        assert e.token_type is not None
        x_BNC = _norm(e.norm, e.word(ids_BN) + e.token_type.weight[0])
        for layer in self.encoder.layers:
            x_BNC = _norm(
                layer.attention_norm, x_BNC + self.attention(layer.attention, x_BNC, bias)
            )
            gate, value = _linear(layer.feed_forward.up, x_BNC).chunk(2, dim=-1)
            forward = _linear(layer.feed_forward.down, F.gelu(gate) * value)
            x_BNC = _norm(layer.feed_forward_norm, x_BNC + forward)
        return x_BNC

    def attention(self, module: Any, x_BNC: Tensor, bias: Tensor) -> Tensor:
        qkv = _linear(module.qkv, x_BNC).unflatten(-1, (3, *module.heads)).permute(2, 0, 3, 1, 4)
        q_BHND, k_BHND, v_BHND = qkv
        if self.eager:
            score = q_BHND @ k_BHND.transpose(-1, -2) * q_BHND.shape[-1] ** -0.5 + bias
            out_BHND = score.softmax(-1) @ v_BHND
        else:
            out_BHND = F.scaled_dot_product_attention(q_BHND, k_BHND, v_BHND, attn_mask=bias)
        out: Tensor = _linear(module.out, out_BHND.transpose(1, 2).flatten(2))
        return out

    def bias(self, n: int, mask_BN: Tensor | None) -> Tensor:
        """(1, H, N, N), kept until another length comes; (B, H, N, N) where padding is masked."""
        bias = kept_alibi(n, self.encoder.config.num_heads, self.encoder.dtype)
        return bias if mask_BN is None else bias.masked_fill(~mask_BN[:, None, None], -torch.inf)


def dense_alibi(n: int, heads: int) -> Tensor:
    """(1, H, N, N) float32."""
    at = torch.arange(n)
    distance = (at[None, :] - at[:, None]).abs().float()
    return distance * -alibi_slopes(heads)[None, :, None, None]


_KEPT: dict[torch.dtype, Tensor] = {}


def kept_alibi(n: int, heads: int, dtype: torch.dtype) -> Tensor:
    """One for all peers of a dtype: at 8,192 tokens one of each peer's own would not fit."""
    kept = _KEPT.get(dtype)
    if kept is None or kept.shape[1:3] != (heads, n):
        _KEPT.pop(dtype, None)
        kept = _KEPT[dtype] = dense_alibi(n, heads).to(dtype)
    return kept


def _linear(layer: Any, x: Tensor) -> Tensor:
    return F.linear(x, layer.weight, layer.bias)


def _norm(norm: Any, x: Tensor) -> Tensor:
    return F.layer_norm(x, norm.weight.shape, norm.weight, norm.bias, norm.eps)
