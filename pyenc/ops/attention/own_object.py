"""A bias of one's own for `attention`: what such an object has, and what it gives, looked at.

Shapes: H heads, n tokens of one sequence; i is the query's position, j the key's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, TypeGuard, runtime_checkable

import torch
from torch import Tensor

from ...errors import InputError
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
    _check_beside(bias, "along", numbers, offsets.device)
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
