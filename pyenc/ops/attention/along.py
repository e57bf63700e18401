"""A bias that depends on the distance alone, as a line of its numbers: what the kernels are given.

Shapes: T packed tokens, H heads, r the reach: the longest distance of a line.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ...errors import InputError
from ..backend import compiling, hides_values
from ..gradient import unlisted
from .own_object import DistanceBias, numbers_along

SHORT = 2**16
"""A line of this reach is made however few tokens there are."""

NEARBY = 80.0
"""A key whose bias lies this far (nats) below the query's own is not near; to order work by."""

FAINT = 1e-260
"""Of the largest weight: sums below are not reckoned, but bounded by their largest term."""


@dataclass(frozen=True, eq=False)
class Line:
    """`score[h, i, j] += numbers[h, r + clip(j - i, -r, r)]`: (H, 2 r + 1), differentiable.

    affine_from: the distance from which on each side lies on a straight line, or None.
    """

    numbers: Tensor
    affine_from: int | None = None

    @property
    def reach(self) -> int:
        return self.numbers.shape[1] // 2


@dataclass(frozen=True, eq=False)
class Within:
    """A bias by distance, and its caller's word that no distance is longer than `reach`: what a
    traced graph has no values for."""

    bias: DistanceBias
    reach: int


def line_of(bias: DistanceBias, heads: int, reach: int, device: torch.device) -> Line:
    """What `bias.along` says of every distance from -reach to reach.

    Raises:
        InputError: it gives something else than float32 or float64 numbers (H, 2 reach + 1), or its
            `affine_from` is no distance.
    """
    offsets = torch.arange(-reach, reach + 1, dtype=torch.long, device=device)
    return Line(numbers_along(bias, offsets, heads), affine_from(bias))


def affine_from(bias: DistanceBias) -> int | None:
    """What it states of itself.

    Raises:
        InputError: that is no distance.
    """
    stated: Any = getattr(bias, "affine_from", None)
    if stated is None or (type(stated) is int and stated >= 0):
        return stated
    raise InputError(
        f"attention: {type(bias).__name__}.affine_from must be an int of at least 0, or None; got "
        f"{stated!r:.80}"
    )


def wants_gradient(bias: DistanceBias, heads: int, device: torch.device) -> bool:
    """Whether what it says has a gradient."""
    if not torch.is_grad_enabled():
        return False
    offsets = torch.zeros(1, dtype=torch.long, device=device)
    return numbers_along(bias, offsets, heads).requires_grad


def check_listed(bias: DistanceBias, heads: int, device: torch.device) -> None:
    """Refuse what the blocks would lose: they give gradients to what `parameters()` lists alone.

    Raises:
        InputError: `along` takes a gradient to another tensor.
    """
    if compiling() or not torch.is_grad_enabled():
        return
    listed: Any = getattr(bias, "parameters", tuple)
    numbers = numbers_along(bias, torch.zeros(1, dtype=torch.long, device=device), heads)
    if lost := unlisted(numbers, listed()):
        raise InputError(
            f"attention: {type(bias).__name__}.along takes a gradient to a tensor of shape "
            f"{tuple(lost[0].shape)} that parameters() does not list; positions so far apart are "
            "served block by block, which gives gradients to those alone"
        )


def reach_of(q: Tensor, cu_seqlens: Tensor, positions: Tensor | None) -> int:
    """The longest distance of a call, or a bound of it where the values must not be looked at.

    Without positions that is where a graph is traced, and on a GPU, which would be waited for:
    every sequence is then taken to have all tokens. Of positions the span of each sequence is
    looked at: they rise in it.
    """
    tokens = q.shape[0]
    if positions is not None:
        # Whatever is wrong with either is found where all values are looked at.
        if not tokens or cu_seqlens.numel() < 2 or positions.numel() != tokens:
            return 0
        at, bounds = positions.long(), cu_seqlens.long().clamp(0, tokens)
        first, last = bounds[:-1].clamp(max=tokens - 1), (bounds[1:] - 1).clamp(min=0)
        return max(0, int((at[last] - at[first]).masked_fill(bounds.diff() < 1, 0).max()))
    if q.device.type != "cpu" or hides_values(cu_seqlens):
        return max(tokens - 1, 0)
    # Whatever it says: that cu_seqlens is wrong is found where its values are looked at.
    longest = int(cu_seqlens.diff().max()) if cu_seqlens.numel() > 1 else 0
    return max(min(longest, tokens) - 1, 0)


def too_far(reach: int, tokens: int) -> str | None:
    """Why no line is made of a reach, or None: positions with wide holes would take more memory
    than the tokens do."""
    if reach <= max(SHORT, 2 * tokens):
        return None
    return f"positions span {reach}, too far for a line of distances"


class Falls(NamedTuple):
    """What may be left out of a line, as csrc/attention/arguments.h wants it."""

    tails: Tensor  # (H, 2 R + 1) float32, in base 2, rounded up
    peaks: Tensor  # the same shape
    nearby: Tensor  # (H,) float32


def falls_of(line: Tensor, span: int, longest: int, eps: float) -> Falls:
    """Bounds of the mass from each distance outward; no assumption of the line's shape is made.

    Positions in a sequence differ, so on each side of a query every distance has one key at most,
    and all keys from d outward weigh sum_{x >= d} e^line[x] by the bias alone.

    line (H, 2 R + 1) float32: by i - j, from -R on, constant beyond; span: the longest distance
    there is; longest: the tokens of the longest sequence; eps: `skip_eps`, more than 0.
    """
    # In numpy, on one thread: so few numbers are not worth waking others, who may be busy.
    reach = line.shape[1] // 2
    wide = line.detach().numpy().astype(np.float64)
    off = np.abs(np.arange(-reach, reach + 1))
    wide[:, off > span] = -math.inf
    # A side outward in: its last distance first, which has all keys from there on where there are
    # any beyond.
    sides = np.stack([wide[:, : reach + 1], wide[:, : reach - 1 if reach else None : -1]])
    beyond = max(longest, 1) if span > reach else 1
    own = wide[:, reach]
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):  # of a NaN, which stays one
        peaks = np.maximum.accumulate(sides, 2)
        mass = _mass(sides, peaks, beyond)
        fall = own - peaks[:, :, max(reach - span, 0)].min(0)
    near = ((wide >= own[:, None] - NEARBY) & (off <= span)).sum(1)
    # So little that nothing may be left out costs bounds for nothing. A NaN hides among the largest
    # scores of a block, so that a head that has one anywhere is computed whole.
    falls = (fall > 0.5 * math.log(1 / eps)) & ~np.isnan(wide).any(1)
    nearby = torch.from_numpy((near.clip(1) * falls).astype(np.float32))
    return Falls(_up(mass), _up(peaks), nearby)


def _mass(sides: np.ndarray, peaks: np.ndarray, beyond: int) -> np.ndarray:
    """log sum exp from the first number on, of each number; the first counts `beyond` times. peaks:
    the largest from the first on."""
    # One scale a side: smallest first, their sums lose nothing, but what is e^-600 of the largest.
    top = peaks[:, :, -1:]
    top = np.where(np.isfinite(top), top, 0.0)
    terms = np.exp(sides - top)
    terms[:, :, 0] *= beyond
    sums = terms.cumsum(2)
    count = np.arange(beyond, beyond + sides.shape[2])
    return np.where(sums < FAINT, peaks + np.log(count), np.log(sums) + top)


def _up(sides: np.ndarray) -> Tensor:
    """(2, H, R + 1), outward in, nats -> (H, 2 R + 1) in base 2, not less by rounding."""
    line = np.concatenate([sides[0], sides[1, :, -2::-1]], 1) / math.log(2)
    line = line + 1e-5 + 1e-6 * np.abs(line, where=np.isfinite(line), out=np.zeros_like(line))
    with np.errstate(over="ignore"):  # to -inf, which of keys so faint is a bound too
        return torch.from_numpy(line.astype(np.float32))


def spread(line: Tensor, reach: int) -> Tensor:
    """A line (H, 2 r + 1) to another reach, its last numbers going on: (H, 2 reach + 1)."""
    own = line.shape[1] // 2
    if reach <= own:
        return line[:, own - reach : own + reach + 1]
    return F.pad(line[None], (reach - own, reach - own), mode="replicate")[0]


def grad_of_line(grad: Tensor, like: Tensor) -> Tensor:
    """Sums by i - j (H, 2 reach + 1), reach at most r -> by j - i, as `like` (H, 2 r + 1)."""
    more = like.shape[1] // 2 - grad.shape[1] // 2
    return F.pad(grad.flip(1), (more, more)).to(like.dtype)
