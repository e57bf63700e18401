"""A layer of an encoder: attention and feed-forward, each with its norm.

Shapes as suffixes: T packed tokens, C channels.
"""

from __future__ import annotations

from torch import Tensor, nn

from .attention import Attention
from .call import Call
from .config import EncoderConfig
from .mixture import feed_forward
from .modules import Norm, called, dropped, dtype_of


class Layer(nn.Module):
    """x = norm(x + attention(x)); x = norm(x + feed_forward(x))."""

    def __init__(self, config: EncoderConfig, index: int = 0) -> None:
        super().__init__()
        self.attention = Attention(config, index)
        self.attention_norm = Norm(config)
        self.second_norm = Norm(config) if config.second_residual else None
        self.feed_forward = feed_forward(config, index)
        self.feed_forward_norm = Norm(config)
        self.dropout = config.dropout_of("output_dropout")

    def forward(self, x_TC: Tensor, call: Call) -> Tensor:
        a_TC = dropped(self.attention(x_TC, call), self.dropout, self.training)
        h_TC, _ = called(self.attention_norm, call.backend, a_TC, x_TC)
        if self.second_norm is not None:
            h_TC, _ = called(self.second_norm, call.backend, x_TC, h_TC)
        f_TC = called(self.feed_forward, call.backend, h_TC)
        out_TC, _ = called(self.feed_forward_norm, call.backend, f_TC, h_TC)
        return out_TC


class PreNormLayer(nn.Module):
    """x = x + attention(norm(x)); x = x + feed_forward(norm(x)); each term normed where
    `term_norm` says so.

    Each sum is made by the norm that reads it next, so what a layer hands on is x and the last
    term, not yet added.
    """

    def __init__(self, config: EncoderConfig, index: int) -> None:
        super().__init__()
        self.attention_norm = Norm(config) if index or config.first_norm else None
        self.attention = Attention(config, index)
        self.feed_forward_norm = Norm(config)
        self.feed_forward = feed_forward(config, index)
        self.attention_term_norm = Norm(config) if config.term_norm else None
        self.feed_forward_term_norm = Norm(config) if config.term_norm else None
        self.dropout = config.dropout_of("output_dropout")

    def forward(self, x_TC: Tensor, term_TC: Tensor | None, call: Call) -> tuple[Tensor, Tensor]:
        y_TC = x_TC
        if self.attention_norm is not None:
            y_TC, x_TC = called(self.attention_norm, call.backend, x_TC, term_TC)
        # Where the sums are wider than the weights, the products are not.
        y_TC = y_TC.to(dtype_of(self.attention.qkv, y_TC.dtype))
        a_TC = dropped(self.attention(y_TC, call), self.dropout, self.training)
        if self.attention_term_norm is not None:
            a_TC, _ = called(self.attention_term_norm, call.backend, a_TC.to(x_TC.dtype), None)
        y_TC, x_TC = called(self.feed_forward_norm, call.backend, x_TC, a_TC)
        y_TC = y_TC.to(dtype_of(self.feed_forward.up, y_TC.dtype))
        f_TC = called(self.feed_forward, call.backend, y_TC)
        if self.feed_forward_term_norm is not None:
            f_TC, _ = called(self.feed_forward_term_norm, call.backend, f_TC.to(x_TC.dtype), None)
        return x_TC, f_TC
