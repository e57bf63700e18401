"""A mixture's experts by torch and `linear`: tokens sorted by expert, two products an expert.

Shapes as suffixes: T packed tokens, K experts of a token, S = T * K slots (token by token), G of
them that go to one expert, E experts, C channels, F feed-forward.
"""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from ...errors import InputError
from ..linear import by_parts, linear

CPU_BYTES = 16 * 2**20
"""Of what an expert's first product gives, how much a CPU makes at a time when no gradient is
wanted: that (G, F) stays small and near so."""

PARTS_BYTES = 4 * CPU_BYTES
"""Likewise where products take both operands apart (`bf16x6`): the weights' parts are made anew for
each of these."""


class Groups(NamedTuple):
    """Slots, and where each expert's are."""

    order_S: Tensor
    """Slots by expert, and of one expert as they were."""
    counts: list[int]
    """Of each expert, on the host."""


def groups_of(chosen_TK: Tensor, experts: int) -> Groups:
    """Slots by expert.

    Raises:
        InputError: an expert is out of range.
    """
    chosen_S = chosen_TK.reshape(-1)
    sorted_S, order_S = torch.sort(chosen_S, stable=True)
    edges = torch.arange(experts + 1, dtype=sorted_S.dtype, device=sorted_S.device)
    bounds: list[int] = torch.searchsorted(sorted_S, edges).tolist()
    if bounds[0] != 0 or bounds[-1] != chosen_S.shape[0]:
        raise InputError(
            f"experts: chosen must be from 0 to {experts - 1}, got {int(sorted_S[0])} to "
            f"{int(sorted_S[-1])}"
        )
    return Groups(order_S, [b - a for a, b in pairwise(bounds)])


def gathered(x_TC: Tensor, order_S: Tensor, each: int) -> Tensor:
    """The token of each slot, (S, C)."""
    if torch.is_grad_enabled() and x_TC.requires_grad:
        # No row is read twice, so that those of the gradient are added up in one order.
        x_SC = x_TC[:, None].expand(-1, each, -1).reshape(-1, x_TC.shape[1])
        return x_SC.index_select(0, order_S)
    return x_TC.index_select(0, order_S // each)


def weighted(y_SC: Tensor, order_S: Tensor, weights_TK: Tensor) -> Tensor:
    """The sum of a token's slots (T, C), from those by expert; in float32 or wider."""
    wide = torch.promote_types(y_SC.dtype, torch.float32)
    (tokens, each), channels = weights_TK.shape, y_SC.shape[1]
    y_TKC = y_SC.index_select(0, order_S.argsort()).view(tokens, each, channels)
    weights_TK1 = weights_TK.to(wide)[..., None]
    total_TC = y_TKC[:, 0] * weights_TK1[:, 0]
    for k in range(1, each):
        total_TC = total_TC + y_TKC[:, k] * weights_TK1[:, k]
    return total_TC


def summed(
    x_TC: Tensor,
    chosen_TK: Tensor,
    weights_TK: Tensor,
    up_EFC: Tensor,
    down_EFC: Tensor,
    activation: str,
    backend: str | None,
) -> Tensor:
    """As `pyenc.ops.experts`, of arguments that were checked."""
    order_S, counts = groups_of(chosen_TK, up_EFC.shape[0])
    rows = gathered(x_TC, order_S, chosen_TK.shape[1]).split(counts)
    made = [
        _fed_forward(x_GC, up_FC, down_FC, activation, backend)
        for x_GC, up_FC, down_FC in zip(rows, up_EFC.unbind(), down_EFC.unbind(), strict=True)
        # Without a token nothing is to be done; of none at all, shape and gradient are kept.
        if x_GC.shape[0] or not order_S.shape[0]
    ]
    return weighted(torch.cat(made), order_S, weights_TK).to(x_TC.dtype)


def _fed_forward(
    x_GC: Tensor, up_FC: Tensor, down_FC: Tensor, activation: str, backend: str | None
) -> Tensor:
    """One expert on its own tokens."""

    def of(part_GC: Tensor) -> Tensor:
        a_GF = linear(part_GC, up_FC, None, activation, backend=backend)
        return linear(a_GF, down_FC.t(), backend=backend)

    size = x_GC.shape[0] * up_FC.shape[0] * x_GC.element_size()
    if torch.is_grad_enabled() or x_GC.device.type != "cpu" or size <= CPU_BYTES:
        return of(x_GC)
    most = PARTS_BYTES if by_parts(x_GC, backend) else CPU_BYTES
    return torch.cat([of(part_GC) for part_GC in x_GC.tensor_split(-(-size // most))])
