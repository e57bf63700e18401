"""The oracle of a mixture's experts, as the formula reads, in the dtype given.

Shapes as suffixes: T tokens, K experts of a token, E experts, C channels, F feed-forward.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..activation import activate


def experts_reference(
    x_TC: Tensor,
    chosen_TK: Tensor,
    weights_TK: Tensor,
    up_EFC: Tensor,
    down_EFC: Tensor,
    activation: str,
) -> Tensor:
    """Every token through every expert, then the sum of those that were chosen for it."""
    weights_TK = weights_TK.to(x_TC.dtype)
    a_ETF = activate(torch.einsum("tc,efc->etf", x_TC, up_EFC), activation)
    y_TEC = torch.einsum("etf,efc->tec", a_ETF, down_EFC)
    rows_T1 = torch.arange(x_TC.shape[0], device=x_TC.device)[:, None]
    return torch.einsum("tk,tkc->tc", weights_TK, y_TEC[rows_T1, chosen_TK.long()])
