"""Jina's shapes in plain torch: with SDPA, eager, compiled; on a card with SDPA and compiled.

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
from bench.compare import Ready
from bench.peers import card_call
from bench.peers.encoder_call import Ids, padded
from pyenc.ops import alibi_slopes


def plain(dtype: torch.dtype, *, eager: bool = False) -> Callable[[pyenc.Encoder], Ids]:
    """torch as one would write it by hand, with a dense bias."""

    def load(encoder: pyenc.Encoder) -> Ids:
        return padded(PlainEncoder(copy.deepcopy(encoder).to(dtype), eager))

    return load


def compiled(dtype: torch.dtype, *, autotune: bool = False) -> Callable[[pyenc.Encoder], Ids]:
    """The same through torch.compile, the weights frozen into it; compiled for each shape.

    autotune: mode "max-autotune", which on a CPU times matrix products of its own making beside
    those of the library.
    """

    def load(encoder: pyenc.Encoder) -> Ids:
        import torch._dynamo
        import torch._inductor.config

        torch._inductor.config.freezing = True
        torch._dynamo.config.recompile_limit = 64
        model = PlainEncoder(copy.deepcopy(encoder).to(dtype), eager=False)
        for parameter in model.parameters():
            parameter.requires_grad_(False)
        mode = "max-autotune" if autotune else None
        forward = torch.compile(model.layers, dynamic=False, mode=mode)

        def run(ids_BN: Tensor, mask_BN: Tensor | None) -> Tensor:
            return forward(ids_BN, model.bias(ids_BN.shape[1], mask_BN))

        return padded(run, torch.no_grad)

    return load


def in_rows(
    encoder: pyenc.Encoder, *, dtype: torch.dtype, device: torch.device, compiled: bool = False
) -> card_call.Prepare:
    """SDPA with a dense bias on a device; compiled: a layer through torch.compile for each shape.

    A layer alone, since all twelve are one graph then, and compiling takes a twelfth of the time;
    nothing could be fused across its ends but a norm with the layer that comes.
    """
    model = PlainEncoder(copy.deepcopy(encoder).to(device, dtype), eager=False)
    model.requires_grad_(False)
    layer = model.layer
    if compiled:
        import torch._dynamo.config as dynamo

        dynamo.recompile_limit = 64
        layer = torch.compile(layer, dynamic=False)

    def bias(ids_BN: Tensor, mask_BN: Tensor | None) -> Tensor:
        dense = dense_alibi(ids_BN.shape[1], encoder.config.num_heads, dtype, device)
        return dense if mask_BN is None else dense.masked_fill(~mask_BN[:, None, None], -torch.inf)

    def forward(ids_BN: Tensor, bias: Tensor) -> Tensor:
        return model.layers(ids_BN, bias, layer)

    mode = torch.no_grad if compiled else torch.inference_mode

    def prepare(texts: list[Tensor]) -> Ready:
        return card_call.in_rows(texts, bias, forward, mode)

    return prepare


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

    def layers(
        self, ids_BN: Tensor, bias: Tensor, call: Callable[..., Tensor] | None = None
    ) -> Tensor:
        """Under a bias that can be added to (B, H, N, N) scores; call: in place of `layer`."""
        e = self.encoder.embeddings
        assert e.token_type is not None
        x_BNC = _norm(e.norm, e.word(ids_BN) + e.token_type.weight[0])
        for layer in self.encoder.layers:
            x_BNC = (call or self.layer)(layer, x_BNC, bias)
        return x_BNC

    def layer(self, layer: Any, x_BNC: Tensor, bias: Tensor) -> Tensor:
        x_BNC = _norm(layer.attention_norm, x_BNC + self.attention(layer.attention, x_BNC, bias))
        gate, value = _linear(layer.feed_forward.up, x_BNC).chunk(2, dim=-1)
        forward = _linear(layer.feed_forward.down, F.gelu(gate) * value)
        return _norm(layer.feed_forward_norm, x_BNC + forward)

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


def dense_alibi(
    n: int, heads: int, dtype: torch.dtype = torch.float32, device: torch.device | None = None
) -> Tensor:
    """(1, H, N, N), head by head: all of them in float32 at once would be the peak of memory."""
    at = torch.arange(n, device=device)
    distance = (at[None, :] - at[:, None]).abs().float()
    bias = torch.empty(1, heads, n, n, dtype=dtype, device=device)
    for head, slope in enumerate(alibi_slopes(heads).tolist()):
        bias[0, head] = distance * -slope
    return bias


_KEPT: dict[torch.dtype, Tensor] = {}


def kept_alibi(n: int, heads: int, dtype: torch.dtype) -> Tensor:
    """One for all peers of a dtype: at 8,192 tokens one of each peer's own would not fit."""
    kept = _KEPT.get(dtype)
    if kept is None or kept.shape[1:3] != (heads, n):
        _KEPT.pop(dtype, None)
        kept = _KEPT[dtype] = dense_alibi(n, heads, dtype)
    return kept


def _linear(layer: Any, x: Tensor) -> Tensor:
    return F.linear(x, layer.weight, layer.bias)


def _norm(norm: Any, x: Tensor) -> Tensor:
    return F.layer_norm(x, norm.weight.shape, norm.weight, norm.bias, norm.eps)
