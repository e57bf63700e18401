"""What `check_score_bias` asks of `along`: a number a distance, the one that the torch form adds.

Shapes: H heads, I queries, J keys, n distances.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...errors import InputError
from .along import affine_from
from .own_object import WIDE, DistanceBias, ScoreBias, ScoreMap, apply_own

TOLERANCE = 1e-4
"""Of the largest number of a head's; float32 functions of exact distances are off by 1e-6."""

ROUNDING = 1e-6
"""Of the numbers that a float32 result was made of."""


def check_along(bias: DistanceBias, i: Tensor, j: Tensor, span: int) -> str:
    """`along` is what it should be at every distance below span, and at the pairs of i and j.

    Returns:
        What was checked.

    Raises:
        InputError: something disagrees; the message says what, by how much, and where.
    """
    name = type(bias).__name__
    leaves = [x for x in getattr(bias, "parameters", tuple)() if x.requires_grad]
    where = leaves[0].device if leaves else torch.device("cpu")
    every = torch.arange(1 - span, span, dtype=torch.long, device=where)
    whole = _along(bias, every)
    broken = whole.isnan() | (whole == float("inf"))
    if bool(broken.any()):
        h, at = torch.unravel_index(broken.int().argmax(), broken.shape)
        raise InputError(
            f"{name}: along gives {whole[h, at].item()} for head {int(h)} at distance "
            f"{int(every[at])}; a number or -inf is right"
        )
    for few in (every[torch.randperm(len(every), device=where)[:41]], every[-1:], every[:3]):
        _compare(
            name, "asked for other distances", _along(bias, few), whole[:, few + span - 1], few
        )
    straight = affine_from(bias)
    said = "" if straight is None else f", affine_from={straight}"
    if straight is not None:
        _check_straight(name, whole, straight)
    if not isinstance(bias, (ScoreBias, ScoreMap)):
        return "along" + said
    i, j = i.to(where), j.to(where)
    s = torch.randn(whole.shape[0], len(i), len(j), dtype=torch.float64, device=where)
    ahead = j[None, :] - i[:, None]
    wanted = apply_own(bias, s.clone(), i, j) - s  # which a map may write over
    got = whole[:, ahead + span - 1]
    form = "score" if isinstance(bias, ScoreMap) else "block"
    _compare(name, f"the torch form ({form})", got, wanted, ahead)
    if isinstance(bias, ScoreMap):
        _check_adds(name, bias, s, wanted.detach(), i, j)
    seen = got.detach() != float("-inf")
    weight = torch.rand_like(s) + 0.5
    _check_gradients(name, form, leaves, got, wanted, weight * seen)
    return (f"along (gradients of {len(leaves)} tensors)" if leaves else "along") + said


def _check_adds(
    name: str, bias: DistanceBias, s: Tensor, added: Tensor, i: Tensor, j: Tensor
) -> None:
    """A map beside `along` adds the same to any score: a share of the score would pass for the
    rounding of far numbers, and backends would not agree on it."""
    other = 10 * torch.randn_like(s)
    again = (apply_own(bias, other.clone(), i, j) - other).detach()
    off = torch.where(again == added, 0, (again - added).abs()).nan_to_num(nan=float("inf"))
    beyond = off - ROUNDING * (s.abs() + other.abs() + added.abs().nan_to_num(0, 0, 0))
    if bool((beyond > 0).any()):
        at = torch.unravel_index(beyond.argmax(), beyond.shape)
        h, a, b = map(int, at)
        raise InputError(
            f"{name}: score adds {added[at]:.6g} to a score of {s[at]:.6g} at head {h}, query "
            f"{int(i[a])}, key {int(j[b])}, and {again[at]:.6g} to one of {other[at]:.6g}: along "
            "says what is added to any"
        )


def _along(bias: DistanceBias, offsets: Tensor) -> Tensor:
    numbers: Any = bias.along(offsets)
    name = type(bias).__name__
    if not isinstance(numbers, Tensor) or numbers.shape[1:] != offsets.shape:
        got = tuple(numbers.shape) if isinstance(numbers, Tensor) else type(numbers).__name__
        raise InputError(f"{name}: along must give (H, {len(offsets)}); got {got}")
    if numbers.dtype not in WIDE:
        raise InputError(f"{name}: along must give float32 (or float64), got {numbers.dtype}")
    return numbers


def _check_straight(name: str, whole: Tensor, straight: int) -> None:
    """The numbers (H, 2 span - 1) of each side lie on a line from a distance on."""
    span = whole.shape[1] // 2 + 1
    for side, numbers in (("left", whole[:, :span].flip(1)), ("right", whole[:, span - 1 :])):
        beyond = numbers.detach()[:, straight:].double()
        if beyond.shape[1] < 3:
            continue
        share = torch.linspace(0, 1, beyond.shape[1], dtype=torch.float64, device=beyond.device)
        on_line = beyond[:, :1] + share * (beyond[:, -1:] - beyond[:, :1])
        off = (beyond - on_line).abs() - TOLERANCE * beyond.abs().amax(1, keepdim=True)
        if not bool((off <= 0).all()):  # what is hidden lies on no line
            h, at = torch.unravel_index(off.nan_to_num(torch.inf).argmax(), off.shape)
            raise InputError(
                f"{name}: affine_from={straight} promises numbers on a straight line from there "
                f"on; on the {side} of head {int(h)} they leave it by "
                f"{(beyond - on_line)[h, at].abs():.4g} at distance {straight + int(at)}"
            )


def _compare(name: str, other: str, got: Tensor, wanted: Tensor, ahead: Tensor) -> None:
    """Numbers (H, ...) at distances (...)."""
    got, wanted = got.detach().double().flatten(1), wanted.detach().double().flatten(1)
    off = torch.where(got == wanted, 0, (got - wanted).abs()).nan_to_num(nan=float("inf"))
    size = wanted.abs().nan_to_num(0, 0, 0).amax(1, keepdim=True)
    beyond = off - TOLERANCE * size
    if not bool((beyond <= 0).all()):
        h, at = torch.unravel_index(beyond.argmax(), beyond.shape)
        raise InputError(
            f"{name}: along is off by up to {off.max():.3g} at head {int(h)}, distance "
            f"{int(ahead.flatten()[at])}: {got[h, at]:.6g}; {other}, it is {wanted[h, at]:.6g}"
        )


def _check_gradients(
    name: str, form: str, leaves: list[Tensor], got: Tensor, wanted: Tensor, weight: Tensor
) -> None:
    if not leaves:
        return
    for what, x in (("along", got), (form, wanted)):
        if not x.requires_grad:
            raise InputError(f"{name}: {what} gives no gradient to what parameters() lists")
    pairs = zip(
        *(
            torch.autograd.grad(
                (x.double().nan_to_num(0, 0, 0) * weight).sum(), leaves, allow_unused=True
            )
            for x in (got, wanted)
        ),
        strict=True,
    )
    for number, (leaf, (ours, theirs)) in enumerate(zip(leaves, pairs, strict=True)):
        ours, theirs = (
            (torch.zeros_like(leaf) if x is None else x).double() for x in (ours, theirs)
        )
        off = (ours - theirs).abs()
        if not bool((off <= TOLERANCE * theirs.abs().max()).all()):
            raise InputError(
                f"{name}: along gives parameters()[{number}] a gradient that is off by up to "
                f"{off.max():.3g} from that of {form}"
            )
