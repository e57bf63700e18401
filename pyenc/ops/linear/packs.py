"""Weights in the order in which a product reads them, and what else is made of weights alone, kept
for as long as it stands for what they hold.

A pack is a second copy of a weight, or of several, so it must go when one of them goes, and must
never be used once one has changed. What tells of a change: the weight's storage, place in it, and
version counter; a sample of its values, since writes through `.data` count no version; and every
step of an optimizer, since torch's fused ones count none either.
"""

from __future__ import annotations

import functools
import math
import threading
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_post_hook

SAMPLE = 1024
"""Values compared on every use: microseconds, and a dense update does not get past them."""


Pack = Callable[..., Any]
"""Makes a pack of weights, which it gets one after another. One is taken for another where they are
equal: its numbers, if it has some, are a part of it, and no weight is."""


@dataclass(frozen=True, eq=False)
class _State:
    """Of a weight, when a pack of it was made."""

    weight: weakref.ref[Tensor]
    storage: weakref.ref[torch.UntypedStorage]
    place: tuple[Any, ...]
    sample: Tensor

    def is_of(self, weight: Tensor) -> bool:
        return (
            self.weight() is weight
            and self.storage() is weight.untyped_storage()
            and self.place == _place(weight)
            and torch.equal(self.sample, _sample(weight))
        )


@dataclass(frozen=True, eq=False)
class _Entry:
    states: tuple[_State, ...]
    made_by: Pack
    pack: Any
    """A tensor, or several."""

    def stands_for(self, weights: tuple[Tensor, ...], pack: Pack) -> bool:
        if self.made_by != pack:
            return False
        for state, weight in zip(self.states, weights, strict=True):  # noqa: SIM110  (as `plain`)
            if not state.is_of(weight):
                return False
        return True


_entries: dict[tuple[int, ...], _Entry] = {}  # by the weights' id
_lock = threading.RLock()  # who makes a pack may ask for another
_hooked = False


def why_not(weight: Tensor) -> str | None:
    """Why there can be no pack of this weight, or a change of it could go unseen; else None."""
    if weight.numel() == 0:
        return "the weight is empty"
    if weight.is_inference():
        return "the weight is an inference tensor, which does not tell when it changes"
    if weight.is_shared():
        return "the weight is in shared memory, where another process may change it"
    return None


def kept(weight: Tensor | tuple[Tensor, ...], pack: Pack) -> Any:
    """The pack of a weight, or of several, that `pack` has made, if there is one."""
    weights = weight if isinstance(weight, tuple) else (weight,)
    entry = _entries.get(tuple(map(id, weights)))
    return entry.pack if entry is not None and entry.stands_for(weights, pack) else None


def packed(weight: Tensor | tuple[Tensor, ...], pack: Pack) -> Any:
    """The pack of a weight for which `why_not` is None, or of several such, made by `pack` when
    there is none."""
    if (found := kept(weight, pack)) is not None:
        return found
    weights = weight if isinstance(weight, tuple) else (weight,)
    with _lock:  # one copy, also when several threads come at once
        entry = _entries.get(tuple(map(id, weights)))
        if entry is None or not entry.stands_for(weights, pack):
            entry = _remember(weights, pack)
    return entry.pack


def forget_all(*_: Any) -> None:
    """Drop every pack."""
    _entries.clear()


def held() -> int:
    """Bytes of packs held."""
    packs = [e.pack if isinstance(e.pack, tuple) else (e.pack,) for e in _entries.values()]
    return sum(tensor.nbytes for pack in packs for tensor in pack)


def _remember(weights: tuple[Tensor, ...], pack: Pack) -> _Entry:
    global _hooked
    if not _hooked:
        register_optimizer_step_post_hook(forget_all)
        _hooked = True
    key = tuple(map(id, weights))
    _entries.pop(key, None)  # before the new copy is made, so that there are never two

    entries = _entries  # the module's name for them may be gone by then

    def forget(reference: weakref.ref[Any]) -> None:
        # The place may be another's, whose references are others.
        entry = entries.get(key)
        if entry is not None and any(
            reference is state.weight or reference is state.storage for state in entry.states
        ):
            entries.pop(key, None)

    # The states first: a write that comes while the copy is made must count as a change.
    states = tuple(
        _State(
            weight=weakref.ref(weight, forget),
            storage=weakref.ref(weight.untyped_storage(), forget),
            place=_place(weight),
            sample=_sample(weight).clone(),
        )
        for weight in weights
    )
    entry = _Entry(states, pack, pack(*(weight.detach() for weight in weights)))
    _entries[key] = entry
    return entry


def _place(weight: Tensor) -> tuple[Any, ...]:
    return (
        weight._version,
        weight.data_ptr(),
        weight.shape,
        weight.stride(),
        weight.dtype,
    )


def _sample(weight: Tensor) -> Tensor:
    """Values at equal steps through the memory, SAMPLE at the least, and so many that every row and
    every column is met: a row may be set to zero through `weight.data`, which tells nobody. Of what
    is no matrix, a bias say, all."""
    weight = weight.detach()
    if weight.ndim != 2:
        return weight.reshape(-1)
    if not weight.is_contiguous():
        weight = weight.t()
    if not weight.is_contiguous():
        return weight.reshape(-1)
    return weight.reshape(-1)[:: _step(*weight.shape)]


@functools.cache
def _step(rows: int, columns: int) -> int:
    """No longer than a row, so that all are met; as many as columns, and by a number that has no
    divisor with theirs, so that these are."""
    step = max(1, min(rows * columns // SAMPLE, rows, columns))
    while math.gcd(step, columns) > 1:
        step -= 1
    return step
