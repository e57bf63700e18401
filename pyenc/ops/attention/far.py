"""Rows whose scores lie far from zero: those of a query that a bias hides from every key by the
most negative number there is, or of which the product with a key is large.

The softmax of such a row is as of any other: what all its scores have in common counts for nothing.
But its log-sum-exp is then the common part alone, in float32, and no weight is to be had from it
(the sum of n like weights is lost beside it); and near the largest number the C++ kernels' scores,
in base 2, are none any more. Blocks of torch take the difference from a row's largest score in both
directions, so they serve calls that have such rows.

Shapes: T packed tokens, H heads.
"""

from __future__ import annotations

import torch
from torch import Tensor

FAR = 2.0**12
"""From here on a log-sum-exp in float32 is off by more than naive scores are."""

FULL = 2e38
"""About as large as a number may be so that log2(e) of it is one."""


def far_bias(kind: str, numbers: Tensor | None, max_distance: int, span: int) -> bool:
    """Whether a bias by distance, as `terms.Terms` has it, may make a row far, of keys at most so
    far apart.

    A query sees its own key. Where the bias of that is near zero, others that are far below it hide
    keys, as at the end of a long text, and only those far above move the row.
    """
    if numbers is None or (not span and kind == "alibi"):
        return False
    if kind == "alibi":
        return float(numbers.min()) * span < -FAR
    own = numbers[0] if kind == "t5" else numbers[:, max_distance]
    if bool((own.abs() <= FAR).all()):
        return bool((numbers > FAR).any())
    return bool(((numbers.abs() > FAR) & (numbers != -torch.inf)).any())


def far_dense(bias_HNN: Tensor, cu_seqlens: Tensor, window: tuple[int, int]) -> bool:
    """Whether a dense bias makes a row far; waits for its device.

    A query sees its own key. Where the bias of that is near zero and none is far above it, no row
    is; else a row's largest, of as many keys as a sequence has, says so. In a window none does.
    """
    if not bias_HNN.numel():
        return False
    own, most = bias_HNN.diagonal(dim1=1, dim2=2), bias_HNN.amax()
    if bool((own.abs() <= FAR).all() & (most <= FAR)):
        return False
    if window != (-1, -1):
        return True
    lengths = set(cu_seqlens.diff().tolist()) - {0}
    tops = [bias_HNN[:, :n, :n].amax(-1) for n in lengths]
    return any(bool(((top.abs() > FAR) & (top != -torch.inf)).any()) for top in tops)


def far_rows(lse_TH: Tensor, most: float = FAR) -> bool:
    """Whether there are rows beyond so much, or that overflowed; one of hidden keys is none."""
    return not bool(((lse_TH.abs() <= most) | (lse_TH == -torch.inf)).all())


def mark(ranges: Tensor | None) -> None:
    """Say to the backward that blocks of torch served the forward: no query met such keys."""
    if ranges is not None:
        ranges.fill_(-1)


def marked(ranges: Tensor) -> bool:
    return bool(ranges.numel()) and int(ranges.view(-1)[0]) < 0


def fitting(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """A tensor in a dtype that may be narrower: its finite numbers stay finite, the largest there
    is in the place of those beyond it."""
    most = torch.finfo(dtype).max
    if not tensor.is_floating_point() or torch.finfo(tensor.dtype).max <= most:
        return tensor.to(dtype)
    return torch.where(tensor.isinf(), tensor, tensor.clamp(-most, most)).to(dtype)
