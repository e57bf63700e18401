"""A layer's feed-forward as a mixture of experts, of which each token goes through a few.

Shapes as suffixes: T packed tokens, K experts of a token, E experts, C channels, F feed-forward.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ..ops import experts, linear
from .config import EncoderConfig
from .experts import Experts
from .feed_forward import FeedForward
from .modules import dropped


class Mixture(nn.Module):
    """sum_k w_k * down_e(activation(up_e(x))) + b over the experts e with the largest w = softmax
    (router(x)); the weights as they are, which then add up to less than one, or divided by their
    sum.

    Weights and choice are made in float32 or wider in any precision: a half could not tell experts
    apart that are nearly as good. Of equal ones the first is chosen.
    """

    def __init__(self, config: EncoderConfig, kind: Experts) -> None:
        super().__init__()
        count, width, channels = kind.count, config.intermediate_size, config.hidden_size
        # Experts one below the other, as files have them; no `Linear`, for none is whole.
        self.router = nn.Parameter(torch.empty(count, channels))
        self.up = nn.Parameter(torch.empty(count * width, channels))
        self.down = nn.Parameter(torch.empty(count * width, channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        for parameter, inputs in ((self.router, channels), (self.up, channels), (self.down, width)):
            # As torch's linear layers are begun.
            nn.init.uniform_(parameter, -1 / math.sqrt(inputs), 1 / math.sqrt(inputs))
        self.each = kind.each
        self.normalized = kind.normalized
        self.activation = config.activation
        self.dropout = config.hidden_dropout

    def forward(self, x_TC: Tensor, backend: str | None) -> Tensor:
        weights_TK, chosen_TK = self.route(x_TC, backend)
        up_EFC, down_EFC = (
            parameter.view(len(self.router), -1, parameter.shape[1])
            for parameter in (self.up, self.down)
        )
        out_TC = experts(
            x_TC, chosen_TK, weights_TK, up_EFC, down_EFC, self.activation, backend=backend
        )
        return dropped(out_TC + self.bias.to(out_TC.dtype), self.dropout, self.training)

    def route(self, x_TC: Tensor, backend: str | None) -> tuple[Tensor, Tensor]:
        """Weights and experts of each token, (T, K) both, the largest weight first."""
        wide = torch.promote_types(x_TC.dtype, torch.float32)
        kind = x_TC.device.type
        if kind in ("cpu", "cuda") and torch.is_autocast_enabled(kind):
            with torch.autocast(kind, enabled=False):
                logits_TE = linear(x_TC.to(wide), self.router.to(wide), backend=backend)
        else:
            logits_TE = linear(x_TC.to(wide), self.router.to(wide), backend=backend)
        # A stable sort: which of equal ones torch.topk takes goes by device and size.
        weights_TE, order_TE = logits_TE.softmax(-1).sort(dim=-1, descending=True, stable=True)
        weights_TK, chosen_TK = weights_TE[:, : self.each], order_TE[:, : self.each]
        if self.normalized:
            weights_TK = weights_TK / weights_TK.sum(-1, keepdim=True)
        return weights_TK, chosen_TK

    def extra_repr(self) -> str:
        count, channels = self.router.shape
        width = self.up.shape[0] // count
        return f"experts={count}, each={self.each}, in_features={channels}, width={width}"


def feed_forward(config: EncoderConfig, index: int) -> FeedForward | Mixture:
    """That of a layer, as the config has it."""
    if config.experts is not None and config.experts.layers[index]:
        return Mixture(config, config.experts)
    return FeedForward(config)
