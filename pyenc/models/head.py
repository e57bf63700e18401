"""The masked-LM head: hidden states in, logits of every word out.

Shapes as suffixes: C channels, V words; any leading dimensions.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from ..ops import linear
from .config import EncoderConfig
from .head_config import HeadConfig
from .modules import Linear, Norm, activated, called, untouched


class MaskedLMHead(nn.Module):
    """logits = W norm(activation(dense(x))) + b, or W x + b.

    Where W is tied there is no parameter of that name here: the word embeddings are handed in, so
    the two can never come apart, and `state_dict` has them once.
    """

    def __init__(self, config: EncoderConfig, head: HeadConfig) -> None:
        super().__init__()
        width = config.embedding_dim
        self.dense: Linear | None = None
        self.norm: Norm | None = None
        if head.transform:
            self.dense = Linear(config.hidden_size, width, bias=head.dense_bias)
            self.norm = Norm(
                replace(config, norm="layer", norm_bias=head.norm_bias, norm_eps=head.norm_eps),
                width,
            )
        self.decoder = None if head.tied else Linear(width, config.vocab_size, bias=False)
        self.bias = nn.Parameter(torch.zeros(config.vocab_size)) if head.bias else None
        self.activation = head.activation

    def forward(self, x: Tensor, words_VC: Tensor, backend: str | None) -> Tensor:
        """(..., C) and the word embeddings (V, C) to (..., V)."""
        if self.dense is not None and self.norm is not None:
            x = activated(self.dense, x, backend, self.activation)
            x, _ = called(self.norm, backend, x, None)
        if self.decoder is not None and not untouched(self.decoder, Linear):
            logits: Tensor = called(self.decoder, backend, x)
            return logits if self.bias is None else logits + self.bias.to(logits.dtype)
        weight_VC = words_VC if self.decoder is None else self.decoder.weight
        # Under autocast the norm answers in float32 and the products do not.
        return linear(x, weight_VC, self.bias, backend=backend)
