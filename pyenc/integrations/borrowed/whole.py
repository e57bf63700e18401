"""A model of transformers under its own calls, its layers computed by pyenc's encoder.

A padded batch comes in and a padded answer goes out, as of the model; in between its tokens are
packed. A model without a head answers with states that are zeros where there is padding. One with a
head is run by its own code, and what is beneath the head is handed such states.

Shapes: B rows, N padded length, C channels.
"""

from __future__ import annotations

import functools
import inspect
from typing import Any

import torch
from torch import Tensor

from ...ops.extension import tell_missing
from .batches import is_plain, is_small, packed_batch, packed_states
from .classes import Standing, put, stands_for
from .heads import READ
from .on_parameters import Borrowed
from .refusals import Refused, warn
from .slot import Slot, asks_for_more, is_traced, restore

OWN = ("labels", "num_items_in_batch", "start_positions", "end_positions")
"""Of a model with a head, what its own code makes a loss of."""

SWITCHES = ("use_cache", "output_attentions", "output_hidden_states")
"""What is not asked for where it is False."""


class WholeSlot(Slot):
    """Of a model that answers for itself."""

    whole_answer = True


class PackedWhole(Standing):
    """Stands for a model, with a head or without."""

    __slots__ = ()

    _pyenc: WholeSlot

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """As of the model; exact zeros in the states of padding."""
        found = None if is_traced() else self._packed(args, kwargs)
        return self.own().forward(*args, **kwargs) if found is None else found

    def restore(self) -> Any:
        """Undo `pyenc.accelerate`: the model, and what is beneath its head, are of their own
        classes again.

        Returns:
            The model itself.
        """
        return restore(self)

    def _packed(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The answer by pyenc's encoder, None where the model's own code is to give one."""
        whole: Any = self
        asked = _asked(whole, args, kwargs)
        if asked is None:
            return None
        given, as_tuple = asked
        features = dict(given)
        ids = features["input_ids"]
        if "attention_mask" not in features:
            features["attention_mask"] = torch.ones_like(ids)
        known = self._pyenc.borrowed
        # Asked first where it can be: to look a model over costs more than a few tokens gain.
        if not is_plain(features) or not ids.numel() or (known and is_small(features, known)):
            return None
        borrowed = self._pyenc.serving(whole, features, has_head=_has_head(whole))
        if borrowed is None or (borrowed is not known and is_small(features, borrowed)):
            return None
        head = borrowed.head
        packed = packed_batch(features, borrowed)
        states_BNC = packed.unpack(packed_states(borrowed.encoder, packed))
        if head is None:
            answer = borrowed.answer.of(states_BNC)
            return answer.to_tuple() if as_tuple else answer
        with head.given(given, states_BNC) as handed:
            found = self.own().forward(*args, **kwargs)
        if not handed.taken:
            self._pyenc.tell("what is beneath its head is given other tensors than it was")
        return found


def _asked(
    whole: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[dict[str, Tensor], bool] | None:
    """The features of a call that asks for what an encoder gives, and whether as a tuple; None of
    any other."""
    kind: Any = type(whole)
    names = _arguments(kind)
    if len(args) > len(names):
        return None
    said = dict(zip(names, args, strict=False)) | kwargs
    given = {name: value for name, value in said.items() if value is not None}
    features = {name: given.pop(name) for name in READ if name in given}
    as_tuple = given.pop("return_dict", getattr(whole.config, "return_dict", True)) is False
    for name in OWN if _has_head(whole) else ():
        given.pop(name, None)
    for name in SWITCHES:
        if given.get(name) is False:
            del given[name]
    known = isinstance(features.get("input_ids"), Tensor) and features.keys() <= set(names)
    return None if given or not known or asks_for_more(whole) else (features, as_tuple)


@functools.cache
def _arguments(kind: type) -> tuple[str, ...]:
    """What the `forward` takes of the class that one of ours stands for."""
    own: Any = stands_for(kind)[1]
    return tuple(inspect.signature(own.forward).parameters)[1:]


def _has_head(whole: Any) -> bool:
    return getattr(whole, "base_model", whole) is not whole


def accelerate_whole(whole: Any) -> Any:
    """`pyenc.accelerate` of a model of transformers.

    Returns:
        The model, which stands; as it was, with a warning, where it cannot.
    """
    if isinstance(whole, PackedWhole):
        return whole
    slot = whole.__dict__["_pyenc"] = WholeSlot()
    put(whole, PackedWhole)  # first: its class is among what is watched
    try:
        slot.borrowed = Borrowed(whole, has_head=_has_head(whole), whole_answer=True)
    except BaseException as reason:
        restore(whole)
        if not isinstance(reason, Refused):
            raise
        warn(f"pyenc.accelerate leaves this {type(whole).__name__} as it is: {reason}")
        return whole
    if slot.borrowed.encoder.device.type == "cpu":
        tell_missing()
    return whole
