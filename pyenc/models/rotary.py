"""Rotary tables, made for the tokens of one call: nothing is kept, so no call depends on another.

Su et al., RoFormer, arXiv 2104.09864. Shapes: B sequences, T packed tokens, D head dim.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import InputError
from .field_types import check_types
from .places import sequence_of_token
from .rotary_scaling import RotaryScaling


@dataclass(frozen=True)
class Rotary:
    """How far a pair of channels turns a position.

    Pair i of D/2 turns by `position * theta^(-2i/D)`.
    """

    theta: float
    factor: float = 1.0
    """NTK scaling by a fixed factor, at every length, as GTE v1.5 does it: theta times the factor,
    and all frequencies divided by factor^(2/D)."""
    dynamic_factor: float | None = None
    """NTK scaling f of a sequence of n > `trained_length` tokens, as nomic-bert does it: theta
    times (f n / trained_length - (f - 1))^(D / (D - 2)). Each sequence by its own length: in the
    original code it is the padded width of the batch, and so its neighbours."""
    trained_length: int = 0
    scaling: RotaryScaling | None = None
    """Another scaling, of all texts alike."""

    def __post_init__(self) -> None:
        check_types(self)
        if not 0 < self.theta < math.inf or not 0 < self.factor < math.inf:
            raise InputError(
                f"Rotary: theta and factor must be positive and finite: {self.theta}, {self.factor}"
            )
        if self.dynamic_factor is not None and (
            not 1 <= self.dynamic_factor < math.inf or self.trained_length < 1
        ):
            raise InputError(
                "Rotary: dynamic_factor must be finite and at least 1, and needs trained_length: "
                f"{self.dynamic_factor}, {self.trained_length}"
            )
        if self.scaling is None:
            return
        if self.factor != 1 or self.dynamic_factor is not None:
            raise InputError("Rotary: scaling goes without factor and dynamic_factor")
        if self.scaling.kind == "yarn" and self.theta <= 1:
            raise InputError(f'Rotary: "yarn" needs a theta above 1, got {self.theta}')

    def tables(self, positions_T: Tensor, cu_seqlens: Tensor, dim: int) -> tuple[Tensor, Tensor]:
        """cos and sin of every token's angles, (T, D/2) float32; by what a scaling multiplies
        queries and keys, they are multiplied too.

        The original codes take frequencies and angles in float32, in this order of operations: at
        position 8,000 another order turns by 5e-4 more.
        """
        if self.dynamic_factor is None:
            frequencies = self.frequencies(dim, positions_T.device)
        else:
            exponents = _exponents(dim, positions_T.device)
            spans_B = _spans(positions_T, cu_seqlens).to(torch.float32)
            grown_B = self.dynamic_factor * spans_B / self.trained_length
            grown_B = (grown_B - (self.dynamic_factor - 1)) ** (dim / (dim - 2))
            far_B = spans_B > self.trained_length
            theta_B = self.theta * torch.where(far_B, grown_B, torch.ones_like(grown_B))
            of_sequence = 1.0 / theta_B[:, None] ** exponents
            frequencies = of_sequence[sequence_of_token(cu_seqlens, positions_T.shape[0])]
        angles = positions_T.to(torch.float32)[:, None] * frequencies
        if self.scaling is None or self.scaling.magnitude == 1:
            return angles.cos(), angles.sin()
        return angles.cos() * self.scaling.magnitude, angles.sin() * self.scaling.magnitude

    def frequencies(self, dim: int, device: torch.device | str = "cpu") -> Tensor:
        """Radians a position of each pair of channels, (D/2,) float32, without dynamic scaling."""
        if self.scaling is not None:
            return self.scaling.frequencies(self.theta, _exponents(dim, device))
        frequencies = 1.0 / ((self.theta * self.factor) ** _exponents(dim, device))
        if self.factor != 1.0:
            frequencies = frequencies / self.factor ** (2 / dim)
        return frequencies


def _exponents(dim: int, device: torch.device | str) -> Tensor:
    return torch.arange(0, dim, 2, dtype=torch.float32, device=device) / dim


def _spans(positions_T: Tensor, cu_seqlens: Tensor) -> Tensor:
    """Tokens of each sequence, holes between them counted: (B,); 0 for an empty one."""
    # One more, for an empty sequence at the end: a graph in which T is a value asks of it nothing.
    known = F.pad(positions_T, (0, 1))
    first = known[cu_seqlens[:-1].long()]
    last = known[(cu_seqlens[1:].long() - 1).clamp(min=0)]
    return torch.where(cu_seqlens.diff() > 0, last - first + 1, 0)


def log_length_scale(cu_seqlens: Tensor, length: int, at_least_one: bool, tokens: int) -> Tensor:
    """log(n) / log(length) of each token's sequence of n tokens, (T, 1, 1) float32.

    GTE's `logn_attention_scale`, a factor of the queries.
    """
    counts_B = cu_seqlens.diff()
    # An empty sequence has no token that would take its -inf.
    # Written there: a copy from the host would be waited for, and is not allowed in a CUDA graph.
    whole = torch.full((), float(length), dtype=torch.float32, device=counts_B.device)
    scale_B = counts_B.to(torch.float32).log() / whole.log()
    if at_least_one:
        scale_B = scale_B.clamp(min=1)
    return scale_B[sequence_of_token(cu_seqlens, tokens)][:, None, None]
