"""Rows of distances, normed and projected once for all calls: of weights alone they are made.

A short text reads few rows of a layer's table of distances, and to project those takes an eighth
of its time (bench/NOTES.md). So where nothing is to be learned, on a CPU, all rows are projected by
the first call, and every call reads those that it needs. All of them, and also in the call that
makes them: products of few and of many rows have other kernels, whose last digits differ, and what
a text gives must not go by the texts before it.

What is kept goes with its weights, and is made anew when one of them changes
(`pyenc.ops.linear.packs`). It takes 2 R F numbers a layer, and R C for all of them: 39 MB in
float32 of deberta-v3-base, a twentieth of what its weights take.

Shapes as suffixes: R all rows of the table, C channels, F of queries and of keys.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..ops import add_layer_norm, extension, linear
from ..ops.linear import choices, packs
from ..ops.linear.straight import asked_of
from ..ops.registered import unwatched
from .modules import Linear, Norm, untouched

ROWS = 1024
"""Of a larger table nothing is kept: all of its rows would be many more than a text reads."""


def kept_table(table: nn.Module, norm: nn.Module | None) -> Tensor | None:
    """norm(table) (R, C), or the weight as it is where there is no norm; None where it would have
    to be made in every call."""
    weight_RC = _own(table, "weight")
    if type(table) is not nn.Embedding or not untouched(table, nn.Embedding):
        return None
    if weight_RC is None or not 0 < weight_RC.shape[0] <= ROWS:
        return None
    if norm is None:
        return weight_RC if _serves(weight_RC) else None
    if type(norm) is not Norm or not untouched(norm, Norm) or "gain" in norm.__dict__:
        return None
    if norm.rms or norm.plus_one or (weights := _weights(norm)) is None:
        return None
    return _kept((weight_RC, *weights), _Normed(norm.eps, extension.missing() is None))


def kept_rows(table_RC: Tensor, module: nn.Module, first: int, last: int) -> Tensor | None:
    """What a linear layer makes of the table (R, F), by its weight's rows [first, last); None where
    it would have to be made in every call."""
    if type(module) is not Linear or not untouched(module, Linear):
        return None
    if (weights := _weights(module)) is None:
        return None
    return _kept((table_RC, *weights), _Projected(first, last, _settings(table_RC.dtype)))


@dataclass(frozen=True)
class _Normed:
    eps: float
    kernels: bool

    def __call__(self, table_RC: Tensor, weight_C: Tensor, bias_C: Tensor | None = None) -> Tensor:
        with _apart():
            return add_layer_norm(table_RC, None, weight_C, bias_C, self.eps, backend="auto")[0]


@dataclass(frozen=True)
class _Projected:
    first: int
    last: int
    settings: tuple[object, ...]
    """What decides the product's last digits."""

    def __call__(self, table_RC: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        rows = slice(self.first, self.last)
        with _apart():
            bias = None if bias is None else bias[rows]
            return linear(table_RC, weight[rows], bias, backend="auto")


def _settings(dtype: torch.dtype) -> tuple[object, ...]:
    there, threads = extension.missing() is None, torch.get_num_threads()
    return *asked_of(dtype), choices.choice(dtype), there, threads


@contextmanager
def _apart() -> Iterator[None]:
    """Of inference mode: later calls may be in none, and an inference tensor counts no writes."""
    with torch.inference_mode(False), torch.no_grad():
        yield


def _kept(weights: tuple[Tensor, ...], make: Callable[..., Tensor]) -> Tensor | None:
    if not _serves(*weights):
        return None
    found: Tensor | None = packs.kept(weights, make)
    if found is None and not any(map(packs.why_not, weights)):
        found = packs.packed(weights, make)
    return found


def _serves(*weights: Tensor) -> bool:
    """Whether nobody follows what is computed of these, dense and of one dtype, on a CPU."""
    dtype = weights[0].dtype
    return unwatched(*weights) and all(
        w.is_cpu and w.dtype == dtype and w.layout == torch.strided for w in weights
    )


def _weights(module: nn.Module) -> tuple[Tensor, ...] | None:
    """A module's weight and its bias, if it has one; None where they are no parameters of its own,
    as a parametrized one's are not: they would be others in every call."""
    weight, bias = _own(module, "weight"), _own(module, "bias")
    if weight is None or (bias is None and module.bias is not None):
        return None
    return (weight,) if bias is None else (weight, bias)


def _own(module: nn.Module, name: str) -> Tensor | None:
    own: dict[str, Any] = module._parameters
    return own.get(name)
