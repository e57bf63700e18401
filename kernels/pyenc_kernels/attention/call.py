"""A call of attention as its kernels take it: its terms, what they are compiled for, their tiles.

Shapes: T packed tokens, B sequences, H heads, D head dim, S slots of GRAIN tokens (slots.py).
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import triton
from torch import Tensor

from ..configs import Config, average_length, config_for
from ..score_function import ScoreFunction, by_key
from ..slots import GRAIN, n_slots

MAX_HEAD_DIM = 256
LEAST_SCALE = 2.0**-40
"""From which on scores keep the order of their products, and what is added to them may be divided
by it: a bias below 2^80 stays a float."""
UNBOUNDED = 2**30
"""A window side no shorter than this hides nothing; it keeps sums with places in 32 bits."""


class Terms(NamedTuple):
    """What a call adds to the scores and hides of them.

    bias and params (H, row) float32 go together; dense (H, side, side), any float dtype, indexed by
    place in the sequence; positions (T,) int32 or int64, increasing in each sequence; window (left,
    right), -1 unbounded; seed: of dropout.
    """

    scale: float
    bias: ScoreFunction | None = None
    params: Tensor | None = None
    dense: Tensor | None = None
    positions: Tensor | None = None
    window: tuple[int, int] = (-1, -1)
    dropout_p: float = 0.0
    seed: int = 0
    skip_eps: float = 0.0


class Ranges(NamedTuple):
    """Which grains of the others each grain meets, [first, last) in (H, S, 2) int32, and the slots
    (H S,) int32 in the order that takes the longest first."""

    met: Tensor
    order: Tensor


def config_of(
    kernel: str, q: Tensor, cu_seqlens: Tensor, variant: str | None,
    given: dict[str, Config] | None = None,
) -> Config:  # fmt: skip
    """By head dim and an average sequence: shapes tell, and nothing waits for the device."""
    if given and (config := given.get(kernel)) is not None:
        return config
    length = int(average_length(q.shape[0], cu_seqlens.shape[0] - 1))
    return config_for(kernel, q, q.shape[2], length, whole=True, variant=variant)


def variant_of(flags: dict[str, Any], learned: bool) -> str | None:
    """The forms whose registers are known: without a bias; affine by the distance, from a number a
    head (ALiBi) or from one that a pair near the diagonal looks up (T5)."""
    if flags["PLAIN"] and not flags["HAS_DROPOUT"]:
        return "plain"
    if flags["AFFINE_FROM"] is None or not flags["BY_DISTANCE"] or flags["HAS_DROPOUT"]:
        return None
    if flags["GATHERS"] != 0:
        return "gathered" if flags["GATHERS"] == 1 else None
    return "affine-learned" if learned else "affine"


class Tensors(NamedTuple):
    positions: Tensor
    params: Tensor
    dense: Tensor
    strides: tuple[int, ...]
    numbers: tuple[int | float, ...]


def common(
    q: Tensor, cu_seqlens: Tensor, terms: Terms, met: Ranges | None
) -> tuple[Tensors, tuple[Any, ...], int]:
    """What every main kernel takes: tensors and numbers, what decides its `flags_of`, and its
    programs if each had a whole grain."""
    tokens, heads, head_dim = q.shape
    n_sequences = cu_seqlens.shape[0] - 1
    slots = n_slots(tokens, n_sequences, GRAIN.value)
    bias, params, dense, positions = terms.bias, terms.params, terms.dense, terms.positions
    left, right = terms.window
    left, right = -1 if left >= UNBOUNDED else left, -1 if right >= UNBOUNDED else right
    tensors = Tensors(
        or_other(positions, q), or_other(params, q), or_other(dense, q),
        (
            0 if params is None else params.stride(0),
            *((0, 0) if dense is None else dense.stride()[:2]),
        ),
        (
            n_sequences, slots, heads, float(terms.scale), left, right, float(terms.dropout_p),
            terms.seed,
        ),
    )  # fmt: skip
    form = (
        None if bias is None else bias.key, left >= 0 or right >= 0, dense is not None,
        positions is not None, terms.dropout_p > 0, met is not None, terms.scale >= LEAST_SCALE,
        head_dim,
    )  # fmt: skip
    return tensors, form, heads * slots


@functools.cache
def flags_of(
    key: str | None, windowed: bool, has_dense: bool, has_positions: bool, has_dropout: bool,
    has_ranges: bool, keeps_order: bool, head_dim: int,
) -> dict[str, Any]:  # fmt: skip
    """Flags known at compilation, for readers alone; key: of the bias's `ScoreFunction`.

    On a side of the query LEVEL adds one number to all scores, what SLANTS one to each key's, the
    same in every tile. GATHERS and SLANTS are for whoever makes a kernel's constants.
    """
    bias = None if key is None else by_key(key)
    everywhere = not windowed and not has_dense
    affine_from = bias.affine_from if bias is not None and everywhere else None
    by_distance = bias is not None and bias.by_distance and not has_positions
    level = affine_from is not None and bias is not None and bias.flat and keeps_order
    gathers = bias.gathers if bias is not None else int(has_dense)
    return {
        "SCORE": None if bias is None else bias.score,
        "GATHERS": gathers,
        "SLANTS": affine_from is not None and by_distance and keeps_order and not level,
        "AFFINE_FROM": affine_from,
        "BY_DISTANCE": by_distance,
        "LEVEL": level,
        "PLAIN": bias is None and everywhere and keeps_order,
        "HAS_POSITIONS": has_positions,
        "HAS_DENSE": has_dense,
        "HAS_WINDOW": windowed,
        "HAS_DROPOUT": has_dropout,
        "HAS_RANGES": has_ranges,
        "HAS_ORDER": has_ranges,
        "HEAD_DIM": head_dim,
        "BLOCK_D": block_d_of(head_dim),
        "PRECISION": "ieee",
    }


def constants_of(config: Config, *form: Any) -> dict[str, Any]:
    """What a main kernel is compiled for but what is its own: its tile, the stages of its loop over
    pairs, and the flags of a form.

    What a bias gathers for a pair is copied ahead into shared memory. One number in two stages is
    what all cards have room for, where the tile has any (a configuration of one stage has none to
    spare); of more, or of nobody knows how many (None), the loop that evaluates pairs is not
    pipelined. Without any that loop has as many stages as the kernel's others.
    """
    flags = dict(flags_of(*form))
    gathers, _ = flags.pop("GATHERS"), flags.pop("SLANTS")
    stages = None if gathers == 0 else min(config.num_stages, 2) if gathers == 1 else 1
    return {"BLOCK_M": config.block_m, "BLOCK_N": config.block_n, "STAGES": stages, **flags}


def or_other(tensor: Tensor | None, other: Tensor) -> Tensor:
    """A pointer for an argument that the kernel will not look at."""
    return other if tensor is None else tensor


def block_d_of(head_dim: int) -> int:
    return max(16, triton.next_power_of_2(head_dim))
