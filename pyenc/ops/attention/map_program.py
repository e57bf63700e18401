"""A bias of one's own as a straight program that the C++ kernels run on tiles of scores.

`score(s, i, j)`, or s + `block(i, j)`, is called with scores and positions that are not there
(traced.py), and what it does to them becomes steps (csrc/attention/map.h). The kernels run them
while the scores are in a cache, in one pass with the products and the softmax, and take them back
for the gradients: nothing as large as (H, i, j) is made, unless the bias has a number a pair. A
program is made anew for each slab of queries, in some hundred microseconds, so nothing is compiled
and nothing goes stale.

What does something else to scores (a sum over keys, double precision, a branch by a value) has no
program.

Shapes: H heads, i queries of a slab, j keys.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..autocast import exactly
from ..constant import by_id, constant_result
from ..unseen import unseen
from . import traced_functions as _functions  # noqa: F401  (it fills the table)
from .own_object import ScoreBias, ScoreMap, is_map
from .trace import Trace
from .traced import Traced, Unsupported, Value

MOST_VALUES = 32


@dataclass
class MapProgram:
    """Steps (op, a, b, c) over values by their numbers: 0 the scores, the inputs, the steps."""

    shape: tuple[int, int, int]  # (H, i, j)
    inputs: list[Tensor]  # each (H or 1, i or 1, j or 1), or with fewer dimensions before the last
    steps: list[tuple[int, ...]]
    result: int


def program_of(bias: ScoreMap | ScoreBias, heads: int, i: Tensor, j: Tensor) -> MapProgram:
    """The program of a bias for queries at positions i and keys at j, both int64 from 0 upward.

    The inputs are in the graph of whatever the bias made them of.

    Raises:
        Unsupported: what it does has no program.
    """
    trace = Trace(heads, i, j)
    try:
        # With gradients, so that it is seen where the bias has none.
        with exactly(i.device), torch.enable_grad():
            if is_map(bias):
                made = bias.score(trace.scores, trace.i, trace.j)
                _check_kind(made)
            else:
                made = bias.block(trace.i, trace.j)  # type: ignore[union-attr]
                if not isinstance(made, Traced):  # it is there already
                    raise Unsupported("a bias that is made of no positions has no steps")
                _check_kind(made)
                made = trace.step("add", trace.scores, made)
            if tuple(made.shape) != trace.shape:
                raise Unsupported(f"scores {tuple(made.shape)} of {trace.shape} have no step")
            if isinstance(made, Traced):
                trace.check_placed(made.axes, made.shape)
            else:  # of nothing that was given
                made = trace.step("add", made, 0)
            return _program(trace, trace.value(made))
    except Unsupported:
        raise
    except Exception as error:  # whatever it is, torch will meet it again if it is the bias's own
        raise Unsupported(f"{type(error).__name__}: {error}") from error
    finally:
        trace.closed = True


def _check_kind(made: Any) -> None:
    """Conditions are no scores: torch's tiles say so."""
    if made.dtype == torch.bool:
        raise Unsupported("conditions in the place of numbers have no step")


def why_no_program(bias: ScoreMap | ScoreBias, heads: int) -> str | None:
    """Why a bias has none, or None: by two queries and two keys, which have values also where
    tensors are fake, and which no trace sees."""
    return _why_none(id(bias), heads)


@constant_result
def _why_none(key: int, heads: int) -> str | None:
    with unseen():
        at = torch.arange(2, dtype=torch.int64, device="cpu")
        try:
            program_of(by_id(key), heads, at, at)
        except Unsupported as error:
            return str(error)
    return None


def _program(trace: Trace, result: Value) -> MapProgram:
    """What the result is made of, and nothing else."""
    for value in trace.inputs.values():
        value.check()
    needed, left = {id(result)}, [result]
    while left:
        for operand in left.pop().step[1:]:
            if id(operand) not in needed:
                needed.add(id(operand))
                left.append(operand)
    inputs = [v for v in trace.inputs.values() if id(v) in needed]
    steps = [v for v in trace.made if id(v) in needed]
    number = {id(v): n for n, v in enumerate((trace.root, *inputs, *steps))}
    if len(number) > MOST_VALUES:
        raise Unsupported(f"it has {len(number)} values, at most {MOST_VALUES} are served")
    program = MapProgram(trace.shape, [v.tensor for v in inputs if v.tensor is not None], [], 0)
    for value in steps:
        operands = [number[id(v)] for v in value.step[1:]]
        program.steps.append((value.step[0], *operands, *[operands[0]] * (3 - len(operands))))
    program.result = number[id(result)]
    return program
