"""A model of transformers under its own calls, its layers computed by pyenc's encoder.

A padded batch comes in and a padded answer goes out, as of the model; in between its tokens are
packed. A model without a head answers with states that are zeros where there is padding. One with a
head is run by its own code, and what is beneath the head is handed such states.

Shapes: B rows, N padded length, C channels.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from ...ops.extension import tell_missing
from .batches import is_plain, is_small, packed_batch, packed_states
from .classes import Standing, put, stands_for, take_away
from .handed import OF_LOSS, READ, is_handed
from .on_parameters import Borrowed
from .refusals import Refused, warn
from .slot import Slot, asks_for_more, is_traced, restore

NO_LABEL = -100
"""Of a place that is left out of a loss, in every head of transformers."""

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
        if not isinstance(self, Standing):  # another forward has kept this one beyond `restore`
            return type(self).forward(self, *args, **kwargs)
        # One that was made of this class knows nothing; one that is asked for within a pass of
        # sentence-transformers' module is run as it is.
        own = is_traced() or "_pyenc" not in vars(self) or is_handed(self)
        found = None if own else self._packed(args, kwargs)
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
        given, of_loss, as_tuple = asked
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
        head, mask = borrowed.head, features["attention_mask"]
        if of_loss and reads_padding(of_loss, mask):
            return None
        if head is None and borrowed.answer.pools and not bool(mask[:, :1].all()):
            return None  # of padding its pooler makes what its own code does
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
) -> tuple[dict[str, Tensor], dict[str, Any], bool] | None:
    """The features of a call that asks for what an encoder gives, what it makes a loss of, and
    whether it answers with a tuple; None of any other."""
    kind: Any = type(whole)
    names = _arguments(kind)
    if len(args) > len(names):
        return None
    said = dict(zip(names, args, strict=False)) | kwargs
    if len(said) < len(args) + len(kwargs):
        return None  # one by two ways, which is its own error
    given = {name: value for name, value in said.items() if value is not None}
    features = {name: given.pop(name) for name in READ if name in given}
    as_tuple = given.pop("return_dict", getattr(whole.config, "return_dict", True)) is False
    of_loss = {n: given.pop(n) for n in OF_LOSS if n in given} if _has_head(whole) else {}
    for name in SWITCHES:
        if given.get(name) is False:
            del given[name]
    known = isinstance(features.get("input_ids"), Tensor) and features.keys() <= set(names)
    return None if given or not known or asks_for_more(whole) else (features, of_loss, as_tuple)


def reads_padding(of_loss: dict[str, Any], mask: Tensor) -> bool:
    """Whether a loss may be of what is made of padding: where an answer begins and ends is looked
    for among all places; labels of places may be of padding, or of what follows it, which a
    language model makes of the place before."""
    real = mask != 0
    if bool(real.all()):
        return False
    if "start_positions" in of_loss or "end_positions" in of_loss:
        return True
    labels = of_loss.get("labels")
    if not isinstance(labels, Tensor) or labels.shape != mask.shape:
        return labels is not None and not isinstance(labels, Tensor)
    counted = labels != NO_LABEL
    return bool((counted & ~real).any()) or bool((counted[:, 1:] & ~real[:, :-1]).any())


@contextmanager
def set_aside(model: Any) -> Iterator[None]:
    """Models within a model that are accelerated by themselves have their own class, and again what
    they had where what is done ends in an error: one encoder is enough."""
    inner = [m for m in model.modules() if isinstance(m, PackedWhole)]
    slots = [module.__dict__.pop("_pyenc", None) for module in inner]
    for module in inner:
        take_away(module)
    try:
        yield
    except BaseException:
        for module, slot in zip(inner, slots, strict=True):
            put(module, PackedWhole)
            module.__dict__["_pyenc"] = slot
        raise


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
    slot = WholeSlot()
    try:
        if isinstance(whole, Standing):
            raise Refused("it is beneath a head that is accelerated: restore() that first")
        if "forward" in vars(whole):
            raise Refused(
                "another forward is set on it, which calls its class's own (mixed precision by "
                "Trainer or accelerate's prepare does so): accelerate it before"
            )
        with set_aside(whole):
            whole.__dict__["_pyenc"] = slot
            put(whole, PackedWhole)  # first: its class is among what is watched
            try:
                found = Borrowed(whole, has_head=_has_head(whole), whole_answer=True)
            except BaseException:
                del whole.__dict__["_pyenc"]
                take_away(whole)
                raise
    except Refused as reason:
        warn(f"pyenc.accelerate leaves this {type(whole).__name__} as it is: {reason}")
        return whole
    slot.borrowed = found
    if found.encoder.device.type == "cpu":
        tell_missing()
    return whole
