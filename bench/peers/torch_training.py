"""An encoder for training as its author would write it in plain torch: padded rows, SDPA.

With MiniLM's shape (absolute positions, plain feed-forward) or Jina-small's (a dense ALiBi bias,
gated). Shapes: B rows, N padded length, H heads, D head dim, C channels.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import pyenc
from bench.peers.torch_encoder import dense_alibi


class PaddedVectors(nn.Module):
    """Means of padded rows, by copies of an encoder's weights.

    Args:
        encoder: post-norm, of position "absolute" or "alibi".
        rows: token ids of each text; padded once, as a collator would have done.
    """

    def __init__(self, encoder: pyenc.Encoder, rows: Sequence[Tensor]) -> None:
        super().__init__()
        self.encoder = copy.deepcopy(encoder)
        self.take(rows)

    def take(self, rows: Sequence[Tensor]) -> None:
        """From now on these."""
        encoder = self.encoder
        self.ids_BN = nn.utils.rnn.pad_sequence(list(rows), batch_first=True)
        lengths = torch.tensor([len(row) for row in rows])
        n = self.ids_BN.shape[1]
        self.mask_BN = torch.arange(n) < lengths[:, None]
        seen = self.mask_BN[:, None, None]
        if encoder.config.position == "alibi":
            dense = dense_alibi(n, encoder.config.num_heads)
            whole = bool(self.mask_BN.all())
            self.bias = dense if whole else dense.masked_fill(~seen, -torch.inf)
        else:
            self.bias = seen

    def forward(self) -> Tensor:
        """(B, C)."""
        x_BNC = self.states(self.ids_BN, self.bias)
        weight_BN1 = self.mask_BN[:, :, None].to(x_BNC.dtype)
        return (x_BNC * weight_BN1).sum(1) / weight_BN1.sum(1)

    def states(self, ids_BN: Tensor, bias: Tensor) -> Tensor:
        """(B, N, C) under a bias that is added to scores, or a mask of them."""
        e: Any = self.encoder.embeddings
        x_BNC = e.word(ids_BN) + e.token_type.weight[0]
        if e.position is not None:
            x_BNC = x_BNC + e.position.weight[: ids_BN.shape[1]]
        x_BNC = _norm(e.norm, x_BNC)
        for layer in self.encoder.layers:
            own: Any = layer
            x_BNC = _norm(own.attention_norm, x_BNC + _attention(own.attention, x_BNC, bias))
            ahead = _linear(own.feed_forward.up, x_BNC)
            if self.encoder.config.gated:
                gate, value = ahead.chunk(2, dim=-1)
                ahead = F.gelu(gate) * value
            else:
                ahead = F.gelu(ahead)
            x_BNC = _norm(own.feed_forward_norm, x_BNC + _linear(own.feed_forward.down, ahead))
        return x_BNC


def _attention(module: Any, x_BNC: Tensor, bias: Tensor) -> Tensor:
    qkv = _linear(module.qkv, x_BNC).unflatten(-1, (3, *module.heads)).permute(2, 0, 3, 1, 4)
    out_BHND = F.scaled_dot_product_attention(*qkv, attn_mask=bias)
    return _linear(module.out, out_BHND.transpose(1, 2).flatten(2))


def _linear(layer: Any, x: Tensor) -> Tensor:
    return F.linear(x, layer.weight, layer.bias)


def _norm(norm: Any, x: Tensor) -> Tensor:
    return F.layer_norm(x, norm.weight.shape, norm.weight, norm.bias, norm.eps)
