"""Weights in the order in which a product reads them, kept for as long as they stand for what the
weight holds.

A pack is a second copy of a weight, so it must go when the weight goes, and must never be used once
the weight has changed. What tells of a change: the weight's storage, place in it, and version
counter; a sample of its values, since writes through `.data` count no version; and every step of
an optimizer, since torch's fused ones count none either.
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


@dataclass(frozen=True, eq=False)
class _Entry:
    weight: weakref.ref[Tensor]
    storage: weakref.ref[torch.UntypedStorage]
    place: tuple[Any, ...]
    sample: Tensor
    made_by: Callable[[Tensor], Any]
    pack: Any
    """A tensor, or several."""

    def stands_for(self, weight: Tensor, pack: Callable[[Tensor], Any]) -> bool:
        return (
            self.weight() is weight
            and self.made_by is pack
            and self.storage() is weight.untyped_storage()
            and self.place == _place(weight)
            and torch.equal(self.sample, _sample(weight))
        )


_entries: dict[int, _Entry] = {}  # by id(weight)
_lock = threading.Lock()
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


def kept(weight: Tensor, pack: Callable[[Tensor], Any]) -> Any:
    """The pack of a weight that `pack` has made, if there is one."""
    entry = _entries.get(id(weight))
    return entry.pack if entry is not None and entry.stands_for(weight, pack) else None


def packed(weight: Tensor, pack: Callable[[Tensor], Any]) -> Any:
    """The pack of a weight for which `why_not` is None, made by `pack` when there is none."""
    if (found := kept(weight, pack)) is not None:
        return found
    with _lock:  # one copy, also when several threads come at once
        entry = _entries.get(id(weight))
        if entry is None or not entry.stands_for(weight, pack):
            entry = _remember(weight, pack)
    return entry.pack


def forget_all(*_: Any) -> None:
    """Drop every pack."""
    _entries.clear()


def held() -> int:
    """Bytes of packs held."""
    packs = [e.pack if isinstance(e.pack, tuple) else (e.pack,) for e in _entries.values()]
    return sum(tensor.nbytes for pack in packs for tensor in pack)


def _remember(weight: Tensor, pack: Callable[[Tensor], Any]) -> _Entry:
    global _hooked
    if not _hooked:
        register_optimizer_step_post_hook(forget_all)
        _hooked = True
    key = id(weight)
    _entries.pop(key, None)  # before the new copy is made, so that there are never two

    def forget(reference: weakref.ref[Any]) -> None:
        # By then the place may be another's, whose references are others.
        entry = _entries.get(key)
        if entry is not None and (reference is entry.weight or reference is entry.storage):
            _entries.pop(key, None)

    # The state first: a write that comes while the copy is made must count as a change.
    entry = _Entry(
        weight=weakref.ref(weight, forget),
        storage=weakref.ref(weight.untyped_storage(), forget),
        place=_place(weight),
        sample=_sample(weight).clone(),
        made_by=pack,
        pack=pack(weight.detach()),
    )
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
    every column is met: a row may be set to zero through `weight.data`, which tells nobody."""
    weight = weight.detach()
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
