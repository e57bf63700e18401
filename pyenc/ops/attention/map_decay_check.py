"""What `check_score_bias` asks of the `decay` of a map: that keys may be left out by it.

Shapes: H heads, I queries, J keys, G scores.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ...errors import InputError

_TOLERANCE = 1e-4
"""Of the largest number of a head's; float32 functions of exact positions are off by 1e-6."""

SPREADS = (3.0, 30.0, 300.0)
"""Of the scores that are tried: what a trained model has, and what it should not."""

Map = Callable[[Tensor, Tensor, Tensor], Tensor]
"""New scores (H, I, J) of s, float64, at i (I,) and j (J,)."""


def check_map_decay(name: str, score: Map, i: Tensor, j: Tensor, rates: Tensor) -> None:
    """score(s, i, j) <= f(s) - r |i - j|, f(s) = score(s, i, i), and f does not fall.

    Both make f(U) - r d a bound of every score at a distance d whose s is at most U. rates (H, 2)
    float64, left and right; one that is not positive leaves nothing out and promises nothing.

    Raises:
        InputError: it does not hold; the message says where.
    """
    if not bool((rates > 0).any()):
        return
    for spread in SPREADS:
        _check_rising(name, score, i[:8], spread, rates)
        shape = len(rates), len(i), len(j)
        s = spread * torch.randn(shape, dtype=torch.float64, device=rates.device)
        near = torch.cat([score(s[:, a : a + 1], at, at.expand(len(j))) for a, at in _each(i)], 1)
        far = score(s, i, j)
        back = (i[:, None] - j[None, :]).double()
        for side, away in enumerate((back.clamp(min=0), (-back).clamp(min=0))):
            rate = rates[:, side, None, None].clamp(min=0)
            over = torch.where((away > 0) & (rate > 0), far - near + rate * away, 0)
            size = near.abs().nan_to_num(0, 0, 0).amax((1, 2), keepdim=True)
            beyond = over - _TOLERANCE * size
            if not beyond.max().item() <= 0:  # a NaN is wrong too
                h, a, b = (int(x) for x in torch.unravel_index(beyond.argmax(), beyond.shape))
                raise InputError(
                    f"{name}: decay promises a rate of {rates[h, side]:.4g} on the "
                    f"{('left', 'right')[side]} of head {h}, but it makes {far[h, a, b]:.4g} of a "
                    f"score of {s[h, a, b]:.4g} at i={int(i[a])}, j={int(j[b])}, more than the "
                    f"{near[h, a, b]:.4g} at no distance less {rates[h, side]:.4g} * |i - j|"
                )


def _check_rising(name: str, score: Map, i: Tensor, spread: float, rates: Tensor) -> None:
    heads = len(rates)
    drawn = torch.rand(heads, 1, 64, dtype=torch.float64, device=rates.device)
    s, _ = (3 * spread * (2 * drawn - 1)).sort(-1)
    for _, at in _each(i):
        near = score(s, at, at.expand(64))
        fall = near[..., :-1] - near[..., 1:]
        fall = fall.where((rates > 0).any(1)[:, None, None], 0)
        size = near.abs().nan_to_num(0, 0, 0).amax((1, 2), keepdim=True)
        beyond = fall - _TOLERANCE * size
        if not beyond.max().item() <= 0:
            h, _, g = (int(x) for x in torch.unravel_index(beyond.argmax(), beyond.shape))
            raise InputError(
                f"{name}: the decay of a map needs one that does not fall as the score grows; in "
                f"head {h} at i=j={int(at)} it makes {near[h, 0, g]:.4g} of {s[h, 0, g]:.4g} and "
                f"{near[h, 0, g + 1]:.4g} of {s[h, 0, g + 1]:.4g}"
            )


def _each(i: Tensor) -> list[tuple[int, Tensor]]:
    return [(a, i[a : a + 1]) for a in range(len(i))]
