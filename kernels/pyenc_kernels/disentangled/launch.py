"""Disentangled attention: the launcher of its kernel, tensors in, tensors out.

Shapes: T packed tokens, B sequences, H heads, D head dim, R rows of relative positions, S slots of
GRAIN tokens (slots.py).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..attention.call import MAX_HEAD_DIM, block_d_of, config_of, or_other
from ..attention.score_tile import LOG2E
from ..configs import Config
from ..launching import Plans
from ..slots import GRAIN, n_slots
from .kernel import disentangled_forward

__all__ = ["MARGIN", "MAX_HEAD_DIM", "forward"]

MARGIN = 2 * GRAIN.value
"""How much further places of one tile may be apart than those that the tile is there for."""

HELD = 2**27
"""Numbers of tokens with rows that are held at once, of each of the two: heads are taken in turn
where there are more."""
ALIGNED = 8
"""Rows are filled up to a multiple: products whose rows begin at any address are slow ones."""


def forward(
    q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, position_keys: Tensor | None,
    position_queries: Tensor | None, line: Tensor, scale: float, positions: Tensor | None = None,
    config: Config | None = None,
) -> Tensor:  # fmt: skip
    """softmax(s) v, each sequence attending to itself alone, with r the row of distance i - j and
    s_ij = scale * (q_i . k_j + q_i . position_keys[r] + k_j . position_queries[r]).

    q, k, v (T, H, D) float32, bfloat16 or float16, D at most MAX_HEAD_DIM, last axes contiguous;
    cu_seqlens (B + 1,) int32 or int64, from 0 to T and not decreasing; position_keys,
    position_queries (R, H, D) of q's dtype, not both None; line (2 (reach + MARGIN) + 1,) int32,
    contiguous: the rows of distances from -reach - MARGIN on, which from reach on are the same on
    either side, or no distance is longer; positions (T,) int32 or int64, contiguous, increasing in
    each sequence. Returns (T, H, D).

    Nothing is checked here, and nothing waits for the device; pyenc.ops checks.
    """
    tokens, heads, _ = q.shape
    out = torch.empty_like(q) if q.is_contiguous() else q.new_empty(q.shape)
    if out.numel() == 0:
        return out
    if config is None:
        config = config_of("disentangled_forward", q, cu_seqlens, None)
    tables = [x for x in (position_keys, position_queries) if x is not None]
    parts = -(-heads * tokens * tables[0].shape[0] // HELD)
    step = -(-heads // min(parts, heads))
    for first in range(0, heads, step):
        here = slice_of_heads(first, min(step, heads - first))
        _launch(
            here(q), here(k), here(v), here(out), cu_seqlens, here(position_keys),
            here(position_queries), line, scale, positions, config,
        )  # fmt: skip
    return out


def slice_of_heads(first: int, count: int) -> Callable[[Any], Any]:
    """What gives those of a tensor (x, H, D), or None of none."""
    return lambda x: None if x is None else x.narrow(1, first, count)


def _launch(
    q: Tensor, k: Tensor, v: Tensor, out: Tensor, cu_seqlens: Tensor,
    position_keys: Tensor | None, position_queries: Tensor | None, line: Tensor, scale: float,
    positions: Tensor | None, config: Config,
) -> None:  # fmt: skip
    """`forward` of some heads."""
    tokens, heads, head_dim = q.shape
    of_queries = None if position_keys is None else by_row(q, position_keys, scale)
    of_keys = None if position_queries is None else by_row(k, position_queries, scale)
    there = of_keys if of_queries is None else of_queries
    assert there is not None
    slots = n_slots(tokens, cu_seqlens.shape[0] - 1, GRAIN.value)
    plan = _FORWARD.of(
        config, of_queries is not None, of_keys is not None, positions is not None, head_dim
    )
    grid = (heads * slots * (GRAIN.value // config.block_m),)
    tensors = (
        q, k, v, out, or_other(of_queries, q), or_other(of_keys, q),
        line, cu_seqlens, or_other(positions, cu_seqlens),
    )  # fmt: skip
    strides = *q.stride()[:2], *k.stride()[:2], *v.stride()[:2], out.stride(0), *there.stride()[:2]
    wide = line.shape[0] // 2
    numbers = cu_seqlens.shape[0] - 1, slots, wide, wide - MARGIN, float(scale)
    plan(grid, tensors, (*strides, *numbers))


def by_row(x: Tensor, table: Tensor, scale: float) -> Tensor:
    """x (T, H, D) with each row of a table (R, H, D), scaled, in base 2: (H, T, R and some more) in
    x's dtype.

    Rounded to it, as whoever computes in halves rounds each of a score's terms, and its sum. It is
    scaled before, so that of float16 no larger number is asked than scores are.
    """
    if lacking := -table.shape[0] % ALIGNED:
        table = F.pad(table, (0, 0, 0, 0, 0, lacking))
    tokens, rows = x.transpose(0, 1), table.permute(1, 2, 0)
    factor = scale * LOG2E.value
    if x.device.type == "cpu":  # which multiplies halves slowly or inexactly
        return torch.bmm(tokens.float(), rows.float()).mul_(factor).to(x.dtype)
    return torch.baddbmm(x.new_empty(()), tokens, rows, beta=0, alpha=factor)


def _constants(
    config: Config, has_keys: bool, has_queries: bool, has_positions: bool, head_dim: int
) -> dict[str, Any]:
    return {
        "HAS_KEYS": has_keys,
        "HAS_QUERIES": has_queries,
        "HAS_POSITIONS": has_positions,
        "HEAD_DIM": head_dim,
        "BLOCK_M": config.block_m,
        "BLOCK_N": config.block_n,
        "BLOCK_D": block_d_of(head_dim),
        "PRECISION": "ieee",
    }


_FORWARD = Plans(disentangled_forward, _constants)
