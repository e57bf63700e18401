"""Where packed tokens stand: in which sequence, and where in it; told by the device itself.

Shapes: B sequences, T packed tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor


def sequence_of_token(cu_seqlens: Tensor, num_tokens: int) -> Tensor:
    """The number of each packed token's sequence, (T,) int64; of tokens after the last one's end,
    the last. Lengths are not read on the host, nor need they add up to T."""
    rows = torch.arange(num_tokens, device=cu_seqlens.device)
    ends = cu_seqlens[1:].long().contiguous()
    return torch.searchsorted(ends, rows, right=True).clamp(max=cu_seqlens.shape[0] - 2)


def places(cu_seqlens: Tensor, num_tokens: int) -> Tensor:
    """0..n-1 in each packed sequence, (T,) int64; 0 after the last one's end."""
    rows = torch.arange(num_tokens, device=cu_seqlens.device)
    starts = cu_seqlens.long()[sequence_of_token(cu_seqlens, num_tokens)]
    return torch.where(rows < cu_seqlens[-1], rows - starts, 0)
