"""Heads of keys and values that several heads of queries share (Ainslie et al., arXiv 2305.13245):
with G of them a head, head h of q meets head h // G of k and v.

Shapes: T packed tokens, H heads of queries, K of keys, D head dim.
"""

from __future__ import annotations

from torch import Tensor


def shares_heads(q: Tensor, k: Tensor) -> bool:
    """Whether q (T, H, D) meets k (T, K, D) where K is not H."""
    shape, of_k = q.shape, k.shape
    if len(shape) != 3 or len(of_k) != 3 or shape[0] != of_k[0] or shape[2] != of_k[2]:
        return False
    return 0 < of_k[1] < shape[1] and shape[1] % of_k[1] == 0


def repeated(y_TKD: Tensor, heads: int) -> Tensor:
    """Each head as often as it takes; of one head no number is copied."""
    y_TKGD = y_TKD[:, :, None].expand(-1, -1, heads // y_TKD.shape[1], -1)
    return y_TKGD.flatten(1, 2)
