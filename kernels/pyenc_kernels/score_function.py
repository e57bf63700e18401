"""What may be done to attention scores: small functions in Triton, and what is known of them.

A `ScoreFunction` maps one score and its place to another score. The kernels inline it; what else it
says lets them be faster (`affine_from`, `decay`) or gives its parameters gradients (`parameter`,
`lookup`).

    score(s, i, j, head, params) -> s
        s: the score so far, scale * q.k. i, j: positions of query and key, counted from the first
        token of the sequence. All float32, of shapes that broadcast with each other. head: its
        number. params: pointer to the head's row of float32 numbers.
    slope(s, i, j, head, params) -> d score / d s, where that is not 1.
    parameter(s, i, j, head, params, index) -> d score / d params[index], `index` known at
        compilation, n_looked to n_learned - 1.
    lookup(i, j, head, params) -> which of params, an int32 from 0 to n_looked - 1, is added to the
        score, for a bias that has a table of numbers. Without `parameter` all n_learned are the
        table's, and n_looked need not be said.
    decay(head, params, left) -> a rate r so that on that side of the query (left: keys before it;
        known at compilation) score(s, i, j) <= s - r |i - j|. Far keys may then be left out. Of a
        map (which has a slope): score(s, i, j) <= f(s) - r |i - j|, where f(s) = score(s, i, i)
        does not fall as s grows; so no key is above f(U) - r |i - j| where no s is above U. s is
        the score itself, not less a mean: a cap of a difference is no difference of caps.
    tail(d, head, params, left) -> t, which does not rise with the distance d >= 1, so that on that
        side of any query the keys at distances of d and more, of which no two are as far, are given
        no more than t together: log(sum of e^(score - s)) <= t. In place of `decay`, for what is
        added and is not below -r |i - j| from the query on: a table of near distances, a logarithm.

affine_from: where |i - j| is at least this, on each side of the query apart, score is s plus a
number of the query's and a number of the key's alone, and stays so when both go on towards each
other: the kernels then compute it once a row and once a column. None: nowhere.
flat: beyond affine_from nothing changes any more on either side.
by_distance: score depends on i and j by j - i alone. Where it is affine, a key's number is then the
same in every tile, and is computed once.
gathers: how many numbers `score` reads from places in params that the pair decides; None: not said.
Where it is 0 or 1, the loop that evaluates pairs is pipelined.

The functions are inlined into kernels of other modules: they may use `tl` and what their own module
defines. `pyenc.ops.check_score_bias` holds them against their torch twin.
"""

from __future__ import annotations

import functools
import itertools
from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

_known: dict[str, ScoreFunction] = {}
_numbers = itertools.count()


@dataclass(frozen=True)
class ScoreFunction:
    """The functions above, each made by `triton.jit`.

    Made once, where they are defined: its `key`, and what is compiled for it, live with the
    process.
    """

    score: Any
    slope: Any = None
    parameter: Any = None
    lookup: Any = None
    n_learned: int = 0
    n_looked: int = 0
    decay: Any = None
    tail: Any = None
    affine_from: int | None = None
    flat: bool = False
    by_distance: bool = False
    gathers: int | None = None
    line: bool = False
    """Whether this is `line`'s, whose numbers get their gradient by diagonals."""

    def __post_init__(self) -> None:
        if self.slope is not None and self.affine_from is not None:
            raise ValueError("ScoreFunction: affine_from is for what is added; slope says it isn't")
        if self.tail is not None and (self.slope is not None or self.decay is not None):
            other = "slope says it isn't" if self.slope is not None else "decay says as much"
            raise ValueError(f"ScoreFunction: tail is for what is added, alone; {other}")
        both = self.parameter is not None and self.lookup is not None
        if both and not 0 < self.n_looked < self.n_learned:
            raise ValueError(
                "ScoreFunction: with lookup and parameter n_looked says how many of the n_learned "
                f"numbers are the table's, the first; got {self.n_looked} of {self.n_learned}"
            )
        if not both and self.n_looked not in (0, self.looked_up):
            raise ValueError("ScoreFunction: n_looked is for lookup and parameter together")
        if (self.parameter is None and self.lookup is None) != (self.n_learned == 0):
            raise ValueError("ScoreFunction: n_learned goes with parameter or lookup")
        if self.flat and self.affine_from is None:
            raise ValueError("ScoreFunction: flat needs affine_from, from where on it is")
        object.__setattr__(self, "key", f"{self.score.__name__}#{next(_numbers)}")
        _known[self.key] = self

    @property
    def fades(self) -> bool:
        """Whether far keys may be left out by what it says."""
        return self.decay is not None or self.tail is not None

    @property
    def looked_up(self) -> int:
        """How many of the learned numbers, the first, are a table's."""
        if self.lookup is None:
            return 0
        return self.n_learned if self.parameter is None else self.n_looked

    key: str = ""
    """A name for a registered op to carry; set here."""


def by_key(key: str) -> ScoreFunction | None:
    """The function of that key, if it is one's."""
    return _known.get(key)


# ---- symmetric ALiBi (arXiv 2108.12409): params is the head's slope ------------------------------


@triton.jit
def _alibi_score(s, i, j, head, params):
    return s - tl.load(params) * tl.abs(i - j)


@triton.jit
def _alibi_parameter(s, i, j, head, params, index: tl.constexpr):
    return -tl.abs(i - j)


@triton.jit
def _alibi_decay(head, params, left: tl.constexpr):
    return tl.load(params)


ALIBI = ScoreFunction(
    _alibi_score,
    parameter=_alibi_parameter,
    n_learned=1,
    decay=_alibi_decay,
    affine_from=0,
    by_distance=True,
    gathers=0,
)


# ---- ALiBi with a slope for each side: params is (slope to the left, slope to the right) -------


@triton.jit
def _asymmetric_alibi_score(s, i, j, head, params):
    return (
        s - tl.load(params) * tl.maximum(i - j, 0.0) - tl.load(params + 1) * tl.maximum(j - i, 0.0)
    )


@triton.jit
def _asymmetric_alibi_parameter(s, i, j, head, params, index: tl.constexpr):
    return -tl.maximum(i - j, 0.0) if index == 0 else -tl.maximum(j - i, 0.0)


@triton.jit
def _asymmetric_alibi_decay(head, params, left: tl.constexpr):
    return tl.load(params) if left else tl.load(params + 1)


ASYMMETRIC_ALIBI = ScoreFunction(
    _asymmetric_alibi_score,
    parameter=_asymmetric_alibi_parameter,
    n_learned=2,
    decay=_asymmetric_alibi_decay,
    affine_from=0,
    by_distance=True,
    gathers=0,
)


# ---- a number for each distance: params is made by `line_params` ---------------------------------

_LINE = tl.constexpr(1)  # where a row's line begins, behind its reach


@triton.jit
def _line_score(s, i, j, head, params):
    reach = tl.load(params)
    place = (tl.minimum(tl.maximum(j - i, -reach), reach) + reach).to(tl.int32)
    return s + tl.load(params + _LINE + place)


@triton.jit
def _line_tail(d, head, params, left: tl.constexpr):
    reach = tl.load(params).to(tl.int32)
    d = tl.minimum(d.to(tl.int32), reach)
    place = reach - d if left else reach + d
    return tl.load(params + _LINE + 2 * reach + 1 + place)


@functools.cache
def line(affine_from: int | None = None) -> ScoreFunction:
    """A line of numbers, which lies straight on each side from a distance on, or nowhere (None)."""
    return ScoreFunction(
        _line_score,
        tail=_line_tail,
        affine_from=affine_from,
        by_distance=True,
        gathers=1,
        line=True,
    )


def line_params(line: Tensor, tails: bool = True) -> Tensor:
    """Rows (H, 1 + 2 (2 reach + 1)) float32 of `line`; without tails (H, 1 + 2 reach + 1).

    line (H, 2 reach + 1): what is added at key - query from -reach to reach, which is as far as two
    positions are apart. Its tails are what all keys from a distance outward are given together;
    without them the call must leave nothing out.
    """
    numbers = line.detach()
    heads, reach = numbers.shape[0], numbers.shape[1] // 2
    parts = [numbers.new_full((heads, 1), reach), numbers]
    if tails:
        # Both sides at once, outward in, which is never one row: torch adds up a row by itself in
        # no fixed order. In double: thousands of roundings of float32 would show.
        sides = torch.cat([numbers[:, :reach], numbers[:, reach + 1 :].flip(1)]).double()
        left, right = torch.logcumsumexp(sides, 1).chunk(2)
        middle = left.new_full((heads, 1), float("inf"))
        ends = torch.cat([left, middle, right.flip(1)], 1).clamp(min=-1e30)
        parts.append(ends + 1e-5 + 1e-6 * ends.abs())  # not less by what float32 may round away
    return torch.cat([part.float() for part in parts], 1).contiguous()


# ---- T5's relative buckets (arXiv 1910.10683): params is made by `relative_position_params` ----

_TABLE = tl.constexpr(128)  # room for buckets at the head of a row


@triton.jit
def _t5_place(i, j, params):
    """Where the pair's distance stands in a line of 2 reach + 1."""
    reach = tl.load(params + _TABLE)
    return (tl.minimum(tl.maximum(j - i, -reach), reach) + reach).to(tl.int32), reach.to(tl.int32)


@triton.jit
def _t5_score(s, i, j, head, params):
    place, _ = _t5_place(i, j, params)
    return s + tl.load(params + _TABLE + 1 + place)


@triton.jit
def _t5_lookup(i, j, head, params):
    place, reach = _t5_place(i, j, params)
    return tl.load(params + _TABLE + 2 + 2 * reach + place).to(tl.int32)


@functools.cache
def relative_position(n_buckets: int, reach: int) -> ScoreFunction:
    """T5's bias with so many buckets; each side's last is that of all keys from `reach` on."""
    if n_buckets > _TABLE.value:
        raise ValueError(f"relative_position: at most {_TABLE.value} buckets, got {n_buckets}")
    return ScoreFunction(
        _t5_score,
        lookup=_t5_lookup,
        n_learned=n_buckets,
        affine_from=reach,
        flat=True,
        by_distance=True,
        gathers=1,
    )


def relative_position_params(table: Tensor, buckets: Tensor) -> Tensor:
    """Rows (H, 128 + 1 + 2 (2 reach + 1)) float32 of `relative_position`.

    table (n_buckets, H); buckets (2 reach + 1,) int64, the bucket of key - query from -reach on.
    """
    heads, reach = table.shape[1], buckets.numel() // 2
    by_head = table.detach().float().t()
    parts = [
        torch.nn.functional.pad(by_head, (0, _TABLE.value - table.shape[0])),
        by_head.new_full((heads, 1), reach),
        by_head[:, buckets],
        buckets.float().expand(heads, -1),
    ]
    return torch.cat(parts, 1).contiguous()
