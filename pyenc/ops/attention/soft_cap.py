"""`SoftCap`: scores that never pass a cap.

Shapes: H heads; i is the query's position, j the key's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...errors import InputError


@dataclass(frozen=True, eq=False)
class SoftCap:
    """All scores between -cap and cap: `score[h, i, j] = cap[h] * tanh(score[h, i, j] / cap[h])`.

    Gemma 2, arXiv 2408.00118, section 2. It comes before what a window or a causal layer hides.

    A cap far above its scores changes none of them: its gradient, a difference of two near numbers,
    is then lost in rounding, and the Triton kernels, exact to about 1e-7 of the cap, round the
    scores themselves.

    Args:
        caps: (H,) float32 or float64, one a head, positive and finite (nobody looks: on a card that
            would be to wait for it); may require grad.
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

    def parameters(self) -> list[Tensor]:
        return [self.caps]

    def score(self, s: Tensor, i: Tensor, j: Tensor) -> Tensor:
        if s.shape[0] != self.caps.shape[0]:
            raise InputError(
                f"attention: H is {s.shape[0]}, but SoftCap has caps of {self.caps.shape[0]} heads"
            )
        caps = self.caps[:, None, None]
        return caps * (s / caps).tanh()

    def kernel(self) -> tuple[Any, Tensor]:
        from pyenc_kernels.attention.soft_cap import SOFT_CAP

        return SOFT_CAP, self.caps[:, None]


def soft_cap(cap: float, num_heads: int, device: torch.device) -> SoftCap:
    """One cap for all heads, (num_heads,) float32; computed where it is, so that no copy waits."""
    return SoftCap(torch.full((num_heads,), cap, dtype=torch.float32, device=device))
