"""Modules of single ops: their parameters, and the call.

Shapes as suffixes: T packed tokens, C channels.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..ops import add_layer_norm, add_rms_norm, linear
from .config import EncoderConfig


def dropped(x: Tensor, p: float, training: bool) -> Tensor:
    """`F.dropout`, which where it drops nothing need not be asked."""
    return F.dropout(x, p, training) if training and p > 0 else x


class Norm(nn.Module):
    """Norm of a sum, and the sum; the parameters of one `add_layer_norm` or `add_rms_norm`."""

    def __init__(self, config: EncoderConfig, width: int | None = None) -> None:
        super().__init__()
        width = config.hidden_size if width is None else width
        self.plus_one = config.norm_plus_one
        self.weight = nn.Parameter(torch.zeros(width) if self.plus_one else torch.ones(width))
        self.bias: nn.Parameter | None = None
        if config.norm == "layer" and config.norm_bias:
            self.bias = nn.Parameter(torch.zeros(width))
        self.eps = config.norm_eps
        self.rms = config.norm == "rms"

    def forward(
        self, x_TC: Tensor, residual_TC: Tensor | None, backend: str | None
    ) -> tuple[Tensor, Tensor]:
        gain = self.gain()
        if self.rms:
            return add_rms_norm(x_TC, residual_TC, gain, self.eps, backend=backend)
        return add_layer_norm(x_TC, residual_TC, gain, self.bias, self.eps, backend=backend)

    def gain(self) -> Tensor:
        """What it multiplies by."""
        if not self.plus_one:
            return self.weight
        return 1 + self.weight.to(torch.promote_types(self.weight.dtype, torch.float32))


class Linear(nn.Linear):
    """The parameters of one `linear`."""

    def forward(  # type: ignore[override]
        self, x_TC: Tensor, backend: str | None, activation: str | None = None
    ) -> Tensor:
        return linear(x_TC, self.weight, self.bias, activation, backend=backend)

    @property
    def dtype(self) -> torch.dtype:
        return self.weight.dtype


class SplitLinear(nn.Module):
    """As `Linear`, where its rows lie in several weights (q, k and v; gate and value): a product
    each, no copy. For parameters that are another module's and stay there."""

    def __init__(self, parts: Sequence[Linear]) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)

    def forward(self, x_TC: Tensor, backend: str | None) -> tuple[Tensor, ...]:
        """The result's channels, a tensor a part."""
        return tuple(part(x_TC, backend) for part in self.parts)

    @property
    def dtype(self) -> torch.dtype:
        return next(self.parameters()).dtype
