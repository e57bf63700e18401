"""What the states behind the first layer are given of neighbouring tokens: a convolution.

Shapes as suffixes: T packed tokens, K tokens of the kernel, C channels, G groups of them, I numbers
that a group reads of a token's neighbours, O channels that it makes.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..ops.activation import activate
from .config import EncoderConfig
from .convolution import Convolution
from .modules import Norm, called, dropped
from .places import sequence_of_token


class Product(nn.Conv1d):
    """A convolution of as many places as its kernel has, which is a product.

    As such it takes less time on a CPU (bench/NOTES.md), and on a card it is in float32 what it
    says: torch lets cuDNN multiply by TF32, which has ten bits.
    """

    def forward(self, near_TCK: Tensor) -> Tensor:
        """(T, C)."""
        if self.groups == 1:
            return F.linear(near_TCK.flatten(1), self.weight.flatten(1), self.bias)
        near_TGI = near_TCK.unflatten(1, (self.groups, -1)).flatten(2)
        weight_GOI = self.weight.unflatten(0, (self.groups, -1)).flatten(2)
        y_TC = torch.einsum("tgi,goi->tgo", near_TGI, weight_GOI).flatten(1)
        return y_TC if self.bias is None else y_TC + self.bias.to(y_TC.dtype)


class Neighbours(nn.Module):
    """norm(x + activation(convolution(embeddings)))."""

    def __init__(self, config: EncoderConfig, kind: Convolution) -> None:
        super().__init__()
        size = config.hidden_size
        self.conv = Product(size, size, kind.kernel, groups=kind.groups)
        self.norm = Norm(config)
        self.dropout = config.hidden_dropout
        self.activation = kind.activation
        self.kernel = kind.kernel

    def forward(
        self,
        embeddings_TC: Tensor,
        x_TC: Tensor,
        cu_seqlens: Tensor,
        positions: Tensor | None,
        backend: str | None,
    ) -> Tensor:
        """(T, C).

        Args:
            embeddings_TC: what the first layer was given.
            x_TC: what it gave.
            cu_seqlens, positions: as of `Call`.
        """
        near_TK = neighbours(cu_seqlens, positions, x_TC.shape[0], self.kernel)
        # Of tokens that are not there zeros are read.
        zero = embeddings_TC.new_zeros((1, embeddings_TC.shape[1]))
        near_TCK = torch.cat([embeddings_TC, zero])[near_TK].transpose(1, 2)
        y_TC = dropped(self.conv(near_TCK), self.dropout, self.training)
        y_TC = torch.tanh(y_TC) if self.activation == "tanh" else activate(y_TC, self.activation)
        out_TC: Tensor
        out_TC, _ = called(self.norm, backend, y_TC.to(x_TC.dtype), x_TC)
        return out_TC


def neighbours(cu_seqlens: Tensor, positions: Tensor | None, tokens: int, kernel: int) -> Tensor:
    """Which packed token stands kernel // 2 positions before each, and so on to as many behind it,
    (T, K) int64; T where there is none in its sequence."""
    half = kernel // 2
    rows_T = torch.arange(tokens, device=cu_seqlens.device)
    # What fills a batch up, behind the last sequence's end, is in none, and so is what is asked for
    # beyond both ends.
    sequence_T = sequence_of_token(cu_seqlens, tokens)
    sequence_T = torch.where(rows_T < cu_seqlens[-1], sequence_T, -2)
    sequence = F.pad(sequence_T, (half, half), value=-1)
    at = rows_T if positions is None else positions.long()
    at = F.pad(at, (half, half))
    middle = slice(half, half + tokens)
    found: list[Tensor] = []
    for offset in range(-half, half + 1):
        found_T = torch.full_like(rows_T, tokens)
        # Positions rise, so a token so many positions away is no more tokens away.
        steps = range(offset + 1) if offset >= 0 else range(offset, 0)
        for step in [offset] if positions is None else steps:
            there = slice(half + step, half + step + tokens)
            same = (sequence[there] == sequence[middle]) & (at[there] - at[middle] == offset)
            found_T = torch.where(same, rows_T + step, found_T)
        found.append(found_T)
    return torch.stack(found, 1)
