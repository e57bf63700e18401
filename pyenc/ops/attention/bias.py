"""Score biases for `attention`: small objects that say what is added to the scaled scores.

Shapes: H heads, n tokens of one sequence; i is the query's position, j the key's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeGuard, runtime_checkable

import torch
from torch import Tensor

from ...errors import InputError, InputTypeError
from ..autocast import exactly
from .far import fitting


@runtime_checkable
class ScoreBias(Protocol):
    """A bias of one's own: any object with this method is accepted by `attention(bias=...)`.

    Positions are counted from the first token of the sequence. The C++ kernels serve it, a slab of
    queries at a time, and the torch backend block by block, both in linear memory. Where it is to
    be learned the object also needs `parameters()`, which lists the tensors that get a gradient; a
    `torch.nn.Module` has it.

    With a method `kernel()` the Triton kernels serve it too. It returns (function, params): a
    `pyenc_kernels.score_function.ScoreFunction`, the same in small Triton functions, and params
    (H, P) float32, a row of numbers a head, made of the object's tensors by torch operations. See
    docs/attention-variants.md, and `check_score_bias`, which compares the two.
    """

    def block(self, i: Tensor, j: Tensor) -> Tensor:
        """Bias of queries at positions i (ni,) and keys at positions j (nj,), int64: (H, ni, nj).

        Made of differentiable torch operations; -inf hides a key, but never all keys of a query.
        j is always of all the sequence's keys, i of as many queries as are taken at a time. The
        backward asks again, and is to be told the same: nothing random (refused where it can be
        told), and nothing changed between the two.
        """
        ...


@runtime_checkable
class ScoreMap(Protocol):
    """As `ScoreBias`, for what does not merely add to the scores (a soft cap, say)."""

    def score(self, s: Tensor, i: Tensor, j: Tensor) -> Tensor:
        """New scores of s (H, ni, nj), those so far, with i (ni,) and j (nj,) as in `block`.

        s is written over after the call: who keeps it keeps a copy.
        """
        ...


@runtime_checkable
class DistanceBias(Protocol):
    """As `ScoreBias`, for what depends on the distance alone: `score[h, i, j] += f_h(j - i)`.

    The C++ kernels, the torch backend and the Triton kernels serve it. Gradients reach whatever
    `along` made its numbers of, without `parameters()`. Far keys are left out by what the numbers
    say (`skip_eps`); nothing more has to be stated. An object may have `block` or `score` as well,
    which `check_score_bias` compares.

    One thing may be stated: `affine_from`, an int of at least 0, where from that distance on the
    numbers of each side are finite and lie on a straight line. The Triton kernels then look up near
    pairs alone. `check_score_bias` checks it.
    """

    def along(self, offsets: Tensor) -> Tensor:
        """What is added at the signed distances j - i in offsets (n,), int64: (H, n).

        Made of differentiable torch operations on offsets' device; float32 (or float64) whatever
        the dtype of q and of what it is made of. -inf hides keys at a distance, but never all keys
        of a query. Each number is its offset's alone, and how many are asked for is the library's
        choice: among them may be distances that no pair of the call has.
        """
        ...


OwnBias = ScoreBias | ScoreMap | DistanceBias


def is_map(bias: Any) -> TypeGuard[ScoreMap]:
    """`isinstance(bias, ScoreMap)`, without what a protocol takes for it in every call."""
    return getattr(bias, "score", None) is not None


def apply_own(bias: OwnBias, s: Tensor, i: Tensor, j: Tensor) -> Tensor:
    """Scores s (H, ni, nj) with a bias of one's own, by its torch form."""
    if is_map(bias):
        right = tuple(s.shape)
        with exactly(s.device):
            made: Any = bias.score(s, i, j)
        if isinstance(made, Tensor) and tuple(made.shape) == right:
            _check_numbers(bias, "score", made, s.device)
            return made
        raise _misshapen(bias, "score", made, f"{right}, (H, i, j), as what it is given")
    return s + fitting(added(bias, i, j, s.shape[0]), s.dtype)  # type: ignore[arg-type]


def added(bias: ScoreBias | DistanceBias, i: Tensor, j: Tensor, heads: int) -> Tensor:
    """What a bias adds at i (ni,) and j (nj,): (H, ni, nj), or what is broadcast to it.

    Raises:
        InputError: it gives something else.
    """
    with exactly(i.device):
        if isinstance(bias, ScoreBias):
            made: Any = bias.block(i, j)
            right = heads, len(i), len(j)
            if isinstance(made, Tensor) and _broadcasts(made.shape, right):
                _check_numbers(bias, "block", made, i.device)
                return made
            raise _misshapen(bias, "block", made, f"{right}, (H, i, j), or what is broadcast to it")
        offsets, place = (j[None, :] - i[:, None]).unique(return_inverse=True)
    return numbers_along(bias, offsets.long(), heads)[:, place]


WIDE = (torch.float32, torch.float64)
"""What the numbers of `along` may be: half ones round far scores by whole units."""


def numbers_along(bias: DistanceBias, offsets: Tensor, heads: int) -> Tensor:
    """What `bias.along` says of distances (n,) int64: (H, n).

    Raises:
        InputError: it gives something else.
    """
    with exactly(offsets.device):
        numbers: Any = bias.along(offsets)
    name, right = type(bias).__name__, (heads, offsets.shape[0])
    if not isinstance(numbers, Tensor) or numbers.shape != right:
        got = tuple(numbers.shape) if isinstance(numbers, Tensor) else type(numbers).__name__
        raise InputError(f"attention: {name}.along must give {right}, (H, n); got {got}")
    if numbers.dtype not in WIDE:
        raise InputError(
            f"attention: {name}.along must give float32 (or float64), got {numbers.dtype}: compute "
            "it of x.float(), say; rounding a bias to half moves far scores by whole units"
        )
    if numbers.device != offsets.device:
        raise InputError(
            f"attention: {name}.along gave numbers on {numbers.device}, q is on {offsets.device}"
        )
    return numbers


def _check_numbers(bias: Any, method: str, made: Tensor, device: torch.device) -> None:
    """Refuse conditions, which would be added as 1 and 0, complex numbers, and those elsewhere."""
    _check_beside(bias, method, made, device)
    if made.dtype == torch.bool:
        raise InputError(
            f"attention: {type(bias).__name__}.{method} gave conditions (torch.bool), expected "
            "numbers: where(hidden, -inf, 0.0) hides keys"
        )
    if made.is_complex():
        raise InputError(
            f"attention: {type(bias).__name__}.{method} gave {made.dtype}, expected real numbers"
        )


def _check_beside(bias: Any, method: str, made: Tensor, device: torch.device) -> None:
    """What a bias gives is on the device of what it is given; one number may be anywhere."""
    if made.device != device and made.ndim:
        raise InputError(
            f"attention: {type(bias).__name__}.{method} gave a tensor on {made.device}, expected "
            f"one on {device}, as what it is given: its parameters belong there too"
        )


def _broadcasts(shape: Sequence[int], onto: tuple[int, ...]) -> bool:
    """Whether a tensor of that shape is broadcast to the other."""
    if len(shape) > len(onto):
        return False
    return all(n in (1, whole) for n, whole in zip(shape[::-1], onto[::-1], strict=False))


def _misshapen(bias: Any, method: str, made: Any, right: str) -> InputError:
    got = tuple(made.shape) if isinstance(made, Tensor) else type(made).__name__
    return InputError(f"attention: {type(bias).__name__}.{method} must give {right}; got {got}")


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
