"""A call of attention as its backends take it: the arguments of the registered ops, flat and in one
order, and the terms of the scores.

Shapes: T packed tokens, B sequences, H heads, D head dim.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple, TypeGuard

import torch
from torch import Tensor

from .along import Line
from .bias import ALiBi, RelativePositionBias
from .groups import GROUP_TOKENS, Group, groups_of
from .own_object import DistanceBias, OwnBias, is_map

Bias = ALiBi | RelativePositionBias | Line | OwnBias | Tensor | None

SKIP_EPS = {torch.float32: 2.0**-24, torch.bfloat16: 2.0**-11, torch.float16: 2.0**-13}
"""What `skip_eps=None` leaves out: less than the output's own rounding shows."""


@dataclass(frozen=True)
class Terms:
    """What is added to the scores, and what hides some of them; tensors are None where absent."""

    kind: str  # "none", "alibi", "t5", "line", "dense", or the key of a ScoreFunction
    # slopes (H,), table (buckets, H), line (H, 2 r + 1) by j - i, dense (H, N, N), params (H, P)
    tensor: Tensor | None
    max_distance: int  # T5's, or r
    affine_from: int | None = field(default=None, kw_only=True)  # of a line
    positions: Tensor | None  # (T,)
    window_left: int
    window_right: int
    scale: float
    dropout_p: float
    seed: int

    @property
    def by_distance(self) -> bool:
        """Nothing but j - i matters: no dense bias, and positions are places (or do not matter)."""
        return self.bare or (self.positions is None and self.kind != "dense")

    @property
    def bare(self) -> bool:
        return self.kind == "none" and self.window_left < 0 and self.window_right < 0


@dataclass(frozen=True)
class CustomTerms:
    """As `Terms`, for a bias of one's own pair by pair."""

    bias: OwnBias
    bounds: list[int]
    positions: Tensor | None  # (T,)
    scale: float
    window: tuple[int, int]
    dropout_p: float
    seed: int
    extension: bool = False
    """Whether the C++ kernels serve it."""

    def parameters(self) -> list[Tensor]:
        """The tensors of the bias that want a gradient, by its own word."""
        return learned_of(self.bias)

    @property
    def mapped(self) -> bool:
        """Whether new scores are made of the old ones; else something is added to them."""
        return is_map(self.bias)

    def groups(
        self, device: torch.device, most_tokens: int = GROUP_TOKENS
    ) -> Iterator[tuple[Group, Tensor]]:
        """Sequences that have one bias, and where their tokens stand (n,): those of one length, of
        so many tokens at the most, or each by itself where positions say where."""
        if self.positions is not None:
            for start, end in itertools.pairwise(self.bounds):
                if end > start:
                    at = self.positions[start:end].long()
                    at = at - at[0]
                    yield Group(end - start, (start,)), at
            return
        for group in groups_of(self.bounds, most_tokens):
            yield group, torch.arange(group.n, dtype=torch.int64, device=device)


class Arguments(NamedTuple):
    """What the registered ops are given, whatever the backend: these names, types and this order
    are their schema (registration.py)."""

    q: Tensor  # (T, H, D), as are k and v
    k: Tensor
    v: Tensor
    cu_seqlens: Tensor  # (B + 1,)
    kind: str  # as `flatten` gives it
    bias: Tensor | None
    max_distance: int
    positions: Tensor | None
    scale: float
    window_left: int
    window_right: int
    dropout_p: float
    seed: Tensor | None  # of no dimension, on the CPU
    skip_eps: float
    want_lse: bool
    want_backward: bool
    backend: str

    def terms(self) -> Terms:
        seed = 0 if self.seed is None else int(self.seed)
        kind, affine_from = named(self.kind)
        return Terms(
            kind, self.bias, self.max_distance, self.positions, self.window_left,
            self.window_right, self.scale, self.dropout_p, seed, affine_from=affine_from,
        )  # fmt: skip


def flatten(bias: Bias) -> tuple[str, Tensor | None, int]:
    """A bias as what a registered op can take: its kind, its tensor, T5's max_distance. The kind of
    a line says from where on it is straight, for `named` to tell."""
    if isinstance(bias, ALiBi):
        return "alibi", bias.slopes, 0
    if isinstance(bias, RelativePositionBias):
        return "t5", bias.table, bias.max_distance
    if isinstance(bias, Line):
        kind = "line" if bias.affine_from is None else f"line/{bias.affine_from}"
        return kind, bias.numbers, bias.reach
    if isinstance(bias, Tensor):
        return "dense", bias, 0
    if bias is not None and hasattr(bias, "kernel"):
        function, params = bias.kernel()
        return function.key, params, 0
    return "none", None, 0


def named(kind: str) -> tuple[str, int | None]:
    """A kind as `Terms` has it, and from where on a line is straight."""
    kind, _, straight = kind.partition("/")
    return kind, int(straight) if straight else None


def learned_of(bias: OwnBias) -> list[Tensor]:
    """The tensors that a bias lists and that want a gradient; each once, for autograd adds up what
    one that stands there twice (tied to itself) is given."""
    listed: Iterable[Tensor] = getattr(bias, "parameters", tuple)()
    found: list[Tensor] = []
    for p in listed:
        if isinstance(p, Tensor) and p.requires_grad and not any(p is other for other in found):
            found.append(p)
    return found


def is_own(bias: Bias) -> TypeGuard[OwnBias]:
    """Whether it is an object of the user's own (or of that form)."""
    return bias is not None and not isinstance(bias, (ALiBi, RelativePositionBias, Line, Tensor))


def has_line(bias: Bias) -> TypeGuard[DistanceBias]:
    """Whether it is one whose numbers depend on the distance alone, by its own word."""
    return is_own(bias) and isinstance(bias, DistanceBias) and not isinstance(bias, type)


def terms_of(
    q: Tensor,
    bias: Bias,
    positions: Tensor | None,
    scale: float | None,
    window: tuple[int, int] | None,
) -> Terms:
    """The terms of a call of `attention` without dropout."""
    left, right = (-1, -1) if window is None else window
    scale = q.shape[-1] ** -0.5 if scale is None else float(scale)
    kind, tensor, max_distance = flatten(bias)
    kind, affine_from = named(kind)
    return Terms(
        kind, tensor, max_distance, positions, left, right, scale, 0.0, 0, affine_from=affine_from
    )


def skip_eps_of(q: Tensor, skip_eps: float | None) -> float:
    """As given, or what q's dtype cannot show."""
    return SKIP_EPS[q.dtype] if skip_eps is None else float(skip_eps)
