"""`SoftCap`: scores that never pass a cap.

Shapes: H heads; i is the query's position, j the key's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...errors import InputError
from ..backend import hides_values, jit_traces, transformed


@dataclass(frozen=True, eq=False)
class SoftCap:
    """All scores between -cap and cap: `score[h, i, j] = cap[h] * tanh(score[h, i, j] / cap[h])`.

    Gemma 2, arXiv 2408.00118, section 2. It comes before what a window or a causal layer hides.

    A cap far above its scores changes none of them, and its own gradient falls as the third power
    of their ratio; neither is lost in rounding. Below 1e-15 of the scores its gradient overflows.

    Args:
        caps: (H,) float32 or float64, one a head, positive and finite (looked at on a CPU alone: on
            a card that would be to wait for it); may require grad.

    Raises:
        InputError: caps are of another shape or dtype, or one is not positive and finite.
    """

    caps: Tensor

    def __post_init__(self) -> None:
        if not isinstance(self.caps, Tensor) or self.caps.ndim != 1:
            got = tuple(getattr(self.caps, "shape", ())) or type(self.caps).__name__
            raise InputError(f"SoftCap: caps must be a tensor (H,), one per head; got {got}")
        if self.caps.dtype not in (torch.float32, torch.float64):
            raise InputError(
                f"SoftCap: caps must stay float32 (or float64), got {self.caps.dtype}: rounded to "
                "half they are others"
            )

        seen = not (hides_values(self.caps) or transformed() or jit_traces())
        if seen and self.caps.device.type == "cpu":
            wrong = ~((self.caps > 0) & (self.caps < torch.inf))  # of a NaN too
            if wrong.any():
                head = int(wrong.nonzero()[0])
                raise InputError(
                    f"SoftCap: caps must be positive and finite, got {self.caps[head]} for head "
                    f"{head}"
                )

    def parameters(self) -> list[Tensor]:
        return [self.caps]

    def score(self, s: Tensor, i: Tensor, j: Tensor) -> Tensor:
        caps = self.caps[:, None, None]
        if s.dtype == torch.float64:  # or their gradient would be added up in float32
            caps = caps.double()
        x = s / caps
        capped = caps * x.tanh()
        if not self.caps.requires_grad:
            return capped
        # Their gradient is tanh x - x sech^2 x, which rounding leaves nothing of near zero, and
        # that of the first terms of tanh's series has no such difference.
        near = 0.01 if x.dtype == torch.float64 else 0.25
        y = (x * x).clamp(max=near * near)  # so that what is not taken stays finite
        series = 1 + y * (-1 / 3 + y * (2 / 15 + y * (-17 / 315 + y * (62 / 2835))))
        return torch.where(x.abs() < near, s * series, capped)

    def kernel(self) -> tuple[Any, Tensor]:
        from pyenc_kernels.attention.soft_cap import SOFT_CAP

        return SOFT_CAP, self.caps[:, None]


def soft_cap(cap: float, num_heads: int, device: torch.device) -> SoftCap:
    """One cap for all heads, (num_heads,) float32; computed where it is, so that no copy waits."""
    return SoftCap(torch.full((num_heads,), cap, dtype=torch.float32, device=device))
