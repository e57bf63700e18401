"""What `check_score_bias` asks of `tail`: that far keys may be left out by it.

Shapes: H heads, n distances.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ...errors import InputError

Tails = Callable[[Tensor], Tensor]
"""Distances (n,) -> (H, 2, n) float64, to the left and to the right."""
Row = Callable[[Tensor, Tensor], Tensor]
"""Positions of a query (1,) and of keys (n,) -> what is added (H, n) float64."""

_TOLERANCE = 1e-4
"""Of the number itself, or of one nat."""


def check_tail(name: str, row: Row, tails: Tails, span: int) -> None:
    """At each distance of some below span, the tail is no less than what all keys from there
    outward are given, of the queries at both ends and of one between, and no more than nearer by.

    Raises:
        InputError: it is; the message says where.
    """
    d = _distances(span)
    promised = tails(d).clamp(min=-1e30)  # -inf: all are hidden
    allowed = _TOLERANCE * promised.abs().clamp(min=1)
    rises = promised.diff() - allowed[..., 1:]
    if not bool((rises <= 0).all()):
        h, side, at = _where(rises)
        raise InputError(
            f"{name}: tail may not rise with the distance; on the {('left', 'right')[side]} of "
            f"head {h} it is {promised[h, side, at]:.4g} at {int(d[at])} and "
            f"{promised[h, side, at + 1]:.4g} at {int(d[at + 1])}"
        )
    keys = torch.arange(span, dtype=torch.long, device="cpu")
    between = int(torch.randint(1, span - 1, (), device="cpu"))
    for place in (0, between, span - 1):
        added = row(keys[place : place + 1], keys)
        for side, outward in enumerate((added[:, :place].flip(1), added[:, place + 1 :])):
            known = d[d <= outward.shape[1]].long()
            if not len(known):
                continue
            together = outward.flip(1).logcumsumexp(1).flip(1)[:, known - 1]
            mine = promised[:, side, : len(known)]
            under = together - mine - allowed[:, side, : len(known)]
            if not bool((under <= 0).all()):  # a NaN is wrong too
                h, _, at = _where(under[:, None])
                raise InputError(
                    f"{name}: tail promises that keys {int(known[at])} and more to the "
                    f"{('left', 'right')[side]} are given no more than {mine[h, at]:.4g} together "
                    f"by head {h}; those of the query at {place} are given {together[h, at]:.4g}"
                )


def _distances(span: int) -> Tensor:
    """(n,) float64, rising: as many within 16 as within 64, 256 and so on, and the longest."""
    rung, found = 16, {1, span - 1}
    while rung < 4 * span:
        found |= set(torch.randint(1, min(rung, span), (24,), device="cpu").tolist())
        rung *= 4
    return torch.tensor(sorted(found), dtype=torch.float64, device="cpu")


def _where(x: Tensor) -> tuple[int, int, int]:
    h, side, at = torch.unravel_index(x.nan_to_num(torch.inf).argmax(), x.shape)
    return int(h), int(side), int(at)
