"""Score biases for `attention`: small objects that say what is added to the scaled scores.

Shapes: H heads, n tokens of one sequence; i is the query's position, j the key's.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...errors import InputError, InputTypeError


@dataclass(frozen=True, eq=False)
class AsymmetricALiBi:
    """ALiBi with a slope of its own for each side of the query, of the variants that this library
    has the worked example: `score[h, i, j] -= left[h] * max(i - j, 0) + right[h] * max(j - i, 0)`.

    Args:
        slopes: (H, 2) float32 or float64, (left, right) a head: for keys before the query and for
            those after it; may require grad.
    """

    slopes: Tensor

    def __post_init__(self) -> None:
        if not isinstance(self.slopes, Tensor) or self.slopes.shape[1:] != (2,):
            got = getattr(self.slopes, "shape", type(self.slopes).__name__)
            raise InputError(f"AsymmetricALiBi: slopes must be a tensor (H, 2), got {got}")
        if self.slopes.dtype not in (torch.float32, torch.float64):
            raise InputError(
                f"AsymmetricALiBi: slopes must stay float32 (or float64), got {self.slopes.dtype}"
            )

    def parameters(self) -> list[Tensor]:
        return [self.slopes]

    def block(self, i: Tensor, j: Tensor) -> Tensor:
        back = (i[:, None] - j[None, :]).to(self.slopes.dtype)
        left, right = self.slopes[:, 0, None, None], self.slopes[:, 1, None, None]
        return -left * back.clamp(min=0) - right * (-back).clamp(min=0)

    def kernel(self) -> tuple[Any, Tensor]:
        from pyenc_kernels.score_function import ASYMMETRIC_ALIBI

        return ASYMMETRIC_ALIBI, self.slopes


@dataclass(frozen=True, eq=False)
class ALiBi:
    """Symmetric ALiBi: `score[h, i, j] -= slopes[h] * |i - j|`.

    The encoder form of Press et al., "Train Short, Test Long" (arXiv 2108.12409). Slopes stay
    float32 whatever the dtype of q: rounded to half they are wrong by up to 0.5 at distance 2,048.

    Args:
        slopes: (H,) float32 or float64, one per head; may require grad. Under tensor parallelism
            the caller passes the slopes of its local heads.
    """

    slopes: Tensor

    def __post_init__(self) -> None:
        if not isinstance(self.slopes, Tensor):
            raise InputError(
                f"ALiBi: slopes must be a tensor (H,), got {type(self.slopes).__name__}"
            )
        if self.slopes.ndim != 1:
            raise InputError(
                f"ALiBi: slopes must be (H,), one per head; got {tuple(self.slopes.shape)}"
            )
        if self.slopes.dtype not in (torch.float32, torch.float64):
            raise InputError(
                f"ALiBi: slopes must stay float32 (or float64), got {self.slopes.dtype}: rounding "
                "them moves far scores by whole units"
            )


@dataclass(frozen=True, eq=False)
class RelativePositionBias:
    """T5 relative position bias, bidirectional: `score[h, i, j] += table[bucket(j - i), h]`.

    Raffel et al., arXiv 1910.10683. Half of the buckets serve j > i. In each half the first half
    holds exact distances, the rest grows logarithmically up to `max_distance`.

    Args:
        table: (num_buckets, H), as stored in T5 checkpoints; may require grad.
        max_distance: distance from which on all keys share the last bucket.
    """

    table: Tensor
    max_distance: int = 128

    def __post_init__(self) -> None:
        if not isinstance(self.table, Tensor):
            raise InputError(
                "RelativePositionBias: table must be a tensor (num_buckets, H), got "
                f"{type(self.table).__name__}"
            )
        if self.table.ndim != 2 or self.table.shape[0] < 4 or self.table.shape[0] % 4:
            raise InputError(
                "RelativePositionBias: table must be (num_buckets, H) with num_buckets a multiple "
                f"of 4; got {tuple(self.table.shape)}"
            )
        whole = isinstance(self.max_distance, (int, torch.SymInt))
        if not whole or isinstance(self.max_distance, bool) or self.max_distance >= 2**63:
            raise InputError(
                "RelativePositionBias: max_distance must be a whole number of 64 bits, got "
                f"{self.max_distance!r:.80}"
            )
        if self.max_distance <= self.table.shape[0] // 4:
            raise InputError(
                f"RelativePositionBias: max_distance {self.max_distance} must exceed the "
                f"{self.table.shape[0] // 4} exact distances of the table"
            )


def alibi_slopes(num_heads: int) -> Tensor:
    """The published ALiBi slopes, (num_heads,) float32 on the CPU.

    A power of two: the geometric sequence that starts at and has ratio 2^(-8/num_heads).
    Otherwise the slopes of the next lower power p, then every second slope of 2p, as in the
    reference code of arXiv 2108.12409; for 12 heads 2^-1 ... 2^-8, 2^-0.5 ... 2^-3.5.
    """
    if not hasattr(num_heads, "__index__"):
        raise InputTypeError(
            f"alibi_slopes: num_heads must be a whole number, got {num_heads!r:.80}"
        )
    if num_heads < 1:
        raise InputError(f"alibi_slopes: num_heads must be at least 1, got {num_heads}")
    lower = 2 ** int(math.log2(num_heads))
    exponents = [8.0 * (h + 1) / lower for h in range(lower)]
    exponents += [8.0 * (h + 1) / (2 * lower) for h in range(0, 2 * (num_heads - lower), 2)]
    return torch.tensor([2.0**-e for e in exponents], dtype=torch.float32, device="cpu")


def slopes_on(num_heads: int, device: torch.device) -> Tensor:
    """`alibi_slopes` on a device; on a card they are computed there.

    Copied from memory that is not pinned, they would make the host wait, and a CUDA graph would
    copy from the same place again at each replay, when something else lies there.
    """
    if device.type != "cuda":
        return alibi_slopes(num_heads).to(device, non_blocking=True)
    return _computed_slopes(num_heads, device)


def _computed_slopes(num_heads: int, device: torch.device) -> Tensor:
    """`alibi_slopes` by torch operations on a device, in double: the same float32 numbers."""
    lower = 2 ** int(math.log2(num_heads))
    halves = [
        torch.arange(first, last, 2, dtype=torch.float64, device=device)
        for first, last in ((2, 2 * lower + 1), (1, 2 * (num_heads - lower)))
        if first < last
    ]
    return torch.exp2(torch.cat(halves) * (-4.0 / lower)).float()


def relative_position_bucket(distance: Tensor, num_buckets: int, max_distance: int) -> Tensor:
    """T5's bucket of each signed distance j - i (integer tensor): int64 of the same shape.

    The logarithm is taken in float32 and in T5's order of operations: at exact powers another
    precision lands in the neighbouring bucket.
    """
    half = num_buckets // 2
    exact = half // 2
    size = distance.abs()
    far = (
        torch.log(size.clamp(min=1).float() / exact)
        / math.log(max_distance / exact)
        * (half - exact)
    ).long()
    bucket = torch.where(size < exact, size.long(), (exact + far).clamp(max=half - 1))
    return bucket + half * (distance > 0)
