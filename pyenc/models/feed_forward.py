"""The feed-forward of a layer, gated or not.

Shapes as suffixes: T packed tokens, C channels, F feed-forward.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from ..errors import InputError
from ..ops import gated_activation, gated_linear, linear
from ..ops.backend import compiling
from ..ops.linear import by_parts
from .config import EncoderConfig
from .modules import Linear, SplitLinear, activated, called, dropped, hooked_before, untouched

CPU_BYTES = 16 * 2**20
"""Of what a feed-forward's first product gives, how much a CPU makes at a time when no gradient is
wanted: that (T, F) or (T, 2F) is the largest tensor of all, and stays small and near so."""

PARTS_BYTES = 4 * CPU_BYTES
"""Likewise where products take both operands apart (`bf16x6`): the weights' parts are made anew for
each of these."""


class FeedForward(nn.Module):
    """down(activation(gate) * value), or down(activation(up)) where the family is not gated."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.width = config.intermediate_size * (2 if config.gated else 1)
        self.up: Linear | SplitLinear = Linear(config.hidden_size, self.width, bias=config.up_bias)
        self.down = Linear(config.intermediate_size, config.hidden_size, bias=config.down_bias)
        self.activation = config.activation
        self.gated = config.gated
        self.gate_first = config.gate_first
        self.wide = config.wide_residual
        self.dropout = config.hidden_dropout
        place = config.feed_forward_dropout or ("inner" if config.gated else "outer")
        self.drops = (place != "outer", place != "inner")

    def forward(self, x_TC: Tensor, backend: str | None) -> Tensor:
        whole = torch.is_grad_enabled() or compiling() or x_TC.device.type != "cpu"
        # A seed draws what it draws with a gradient: cached losses go through twice, once without.
        whole = whole or (self.training and self.dropout > 0)
        if whole:
            return self.rows(x_TC, backend)
        size = x_TC.shape[0] * self.width * x_TC.element_size()
        most = PARTS_BYTES if size > CPU_BYTES and by_parts(x_TC, backend) else CPU_BYTES
        if size <= most:
            return self.rows(x_TC, backend)
        count = -(-size // most)
        return torch.cat([self.rows(part_TC, backend) for part_TC in x_TC.tensor_split(count)])

    def rows(self, x_TC: Tensor, backend: str | None) -> Tensor:
        """The arithmetic; each token for itself."""
        inner, outer = (self.dropout if drops else 0.0 for drops in self.drops)
        if self.gated and isinstance(self.up, SplitLinear):
            first_TF, second_TF = called(self.up, backend, x_TC)
            if not self.gate_first:
                first_TF, second_TF = second_TF, first_TF
            m_TF = gated_activation(first_TF, second_TF, self.activation, backend=backend)
        elif self.gated and isinstance(self.up, Linear) and untouched(self.up, Linear):
            m_TF = gated_linear(
                x_TC, self.up.weight, self.up.bias, self.activation, self.gate_first,
                backend=backend,
            )  # fmt: skip
        elif self.gated:
            _check_whole(self.up)
            gate_TF, value_TF = called(self.up, backend, x_TC).chunk(2, dim=-1)
            if not self.gate_first:
                gate_TF, value_TF = value_TF, gate_TF
            m_TF = gated_activation(gate_TF, value_TF, self.activation, backend=backend)
        else:
            m_TF = activated(self.up, x_TC, backend, self.activation)
        m_TF = dropped(m_TF, inner, self.training)
        if self.wide and m_TF.dtype == torch.float16 and not untouched(self.down, Linear):
            widened = {name: p.float() for name, p in self.down.named_parameters()}
            wide_TF = m_TF.float()
            if hooked_before(self.down):
                named = {"backend": backend}
                out_TC = functional_call(self.down, widened, (wide_TF,), named)
            else:
                out_TC = functional_call(self.down, widened, (wide_TF, backend))
        elif self.wide and m_TF.dtype == torch.float16:
            bias = None if self.down.bias is None else self.down.bias.float()
            out_TC = linear(m_TF.float(), self.down.weight.float(), bias, backend=backend)
        else:
            out_TC = called(self.down, backend, m_TF)
        return dropped(out_TC, outer, self.training)


def _check_whole(up: nn.Module) -> None:
    """Gates and values are the two halves of its rows, and of a shard's rows they are not.

    Raises:
        InputError: tensor parallelism has given this process a part of the rows.
    """
    weight: Any = getattr(up, "weight", None)
    for dim, placement in enumerate(getattr(weight, "placements", ())):
        if placement.is_shard(0) and weight.device_mesh.size(dim) > 1:
            raise InputError(
                "FeedForward: up is gated, and its weight is sharded by rows (ColwiseParallel), of "
                "which a part holds no value for its gates; shard feed_forward.down or ungated "
                "layers, or none"
            )
