"""Attention with a user's own `ScoreBias`, in torch: blocks of queries, recomputed in the backward.

The bias is a Python object, so this path is ordinary autograd under checkpointing instead of a
registered op: gradients reach the object's tensors by themselves, and memory stays linear.
"""

from __future__ import annotations

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from .bias import ScoreBias
from .groups import BLOCK_ELEMENTS


def attention_custom_bias(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bounds: list[int],
    bias: ScoreBias,
    positions: Tensor | None,
    scale: float,
    window: tuple[int, int],
    dropout_p: float,
) -> tuple[Tensor, Tensor]:
    """out (T, H, D) in q's dtype and log-sum-exp (T, H), float32 or wider, both differentiable."""
    outs, lses = [q.new_empty(0, *q.shape[1:])], [q.new_empty(0, q.shape[1]).float()]
    wide = torch.promote_types(q.dtype, torch.float32)

    def block(q_ihd: Tensor, k_jhd: Tensor, v_jhd: Tensor, i: Tensor, j: Tensor) -> list[Tensor]:
        score = torch.einsum("ihd,jhd->hij", q_ihd.to(wide), k_jhd.to(wide)) * scale
        score = score + bias.block(i, j)
        ahead = j[None, :] - i[:, None]
        if window[0] >= 0:
            score = score.masked_fill(-ahead > window[0], float("-inf"))
        if window[1] >= 0:
            score = score.masked_fill(ahead > window[1], float("-inf"))
        weight = F.dropout(score.softmax(-1), dropout_p)
        out = torch.einsum("hij,jhd->ihd", weight, v_jhd.to(wide))
        return [out.to(q.dtype), score.logsumexp(-1).t()]

    for start, end in itertools.pairwise(bounds):
        n = end - start
        at = torch.arange(n, device=q.device) if positions is None else positions[start:end]
        rows = max(1, BLOCK_ELEMENTS // max(1, q.shape[1] * n))
        for first in range(0, n, rows):
            here = slice(start + first, min(start + first + rows, end))
            out, lse = checkpoint(
                block, q[here], k[start:end], v[start:end], at[first : first + rows], at,
                use_reentrant=False,
            )  # fmt: skip
            outs.append(out)
            lses.append(lse)
    return torch.cat(outs), torch.cat(lses)
