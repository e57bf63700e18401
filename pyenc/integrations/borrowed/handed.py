"""What stands beneath a head, or for a model without one, and answers with states it is handed.

Shapes: B rows, N padded length, C channels.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from .classes import Standing
from .refusals import Refused

READ = frozenset({"input_ids", "attention_mask", "token_type_ids"})
"""Features that an encoder reads."""

OF_LOSS = ("labels", "num_items_in_batch", "start_positions", "end_positions")
"""What a head's own code makes a loss of."""

_here = threading.local()
"""`given`: what the model beneath a head is to answer, in this thread."""


class Handed(Standing):
    """Stands for the model beneath a head: answers with the states that it is handed."""

    __slots__ = ()

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """As of the model, whose own code is run where nothing was handed to it."""
        # What is traced is not handed anything, and may not ask.
        given = None if torch.compiler.is_compiling() else getattr(_here, "given", None)
        if given is None or not given.is_for(self, args, kwargs):
            return self.own().forward(*args, **kwargs)
        return given.answer()


class Answer:
    """What a model without a head answers: its states, and what its pooler makes of them.

    Args:
        model: the model.
        answer: of it to some texts, by its own code.
    """

    def __init__(self, model: nn.Module, answer: Any) -> None:
        self.model = model
        self._kind = type(answer)
        self.pools = getattr(answer, "pooler_output", None) is not None
        """Whether it answers what its pooler makes of each row's first state."""

    def of(self, states_BNC: Tensor) -> Any:
        """What the model answers with these states."""
        said: dict[str, Tensor] = {"last_hidden_state": states_BNC}
        if self.pools:
            said["pooler_output"] = pooled(self.model, states_BNC)
        return self._kind(**said)

    def check(self, answer: Any) -> None:
        """This answer of the model's own code is made of its states alone.

        Raises:
            Refused: there is more in it.
        """
        kind, made = type(self.model).__name__, self.of(answer.last_hidden_state)
        for name, value in answer.items():
            # These are not asked for where states are handed.
            if name in ("hidden_states", "attentions"):
                continue
            if made.get(name) is None:
                cache = " (config.use_cache = False leaves it out)" if "cache" in name else ""
                raise Refused(f"{kind} also answers {name}, which pyenc's encoder does not{cache}")
            if not torch.allclose(made[name], value):
                raise Refused(f"{kind} answers {name} otherwise than by its own pooler")


class Given:
    """States that the model beneath a head is to answer with, to certain features."""

    def __init__(self, head: Any, features: dict[str, Any], states_BNC: Tensor) -> None:
        self.head, self.features, self.states_BNC = head, features, states_BNC
        self.taken = False

    def is_for(self, model: object, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        """Whether a call of a model asks for these states and no more: a head may hand on others
        than it was given."""
        names, features = self.head.names, self.features
        if model is not self.head.model or len(args) > len(names):
            return False
        said = dict(zip(names, args, strict=False)) | kwargs
        if said.get("output_hidden_states") or said.get("output_attentions"):
            return False
        read = READ.intersection(names, features)
        return all(said.get(name) is features[name] for name in read) and not any(
            isinstance(value, Tensor) and features.get(name) is not value
            for name, value in said.items()
            if name not in OF_LOSS
        )

    def answer(self) -> Any:
        """What the model beneath answers."""
        self.taken = True
        return self.head.answer.of(self.states_BNC)


def is_handed(whole: object) -> bool:
    """Whether, in this thread, what is beneath this model's head is handed states already."""
    given = getattr(_here, "given", None)
    return given is not None and given.head.whole is whole


def pooled(model: Any, states_BNC: Tensor) -> Tensor:
    """(B, C) by a model's own pooler."""
    found: Tensor
    if isinstance(model.pooler, nn.Linear):  # ALBERT's, whose activation is beside it
        found = model.pooler_activation(model.pooler(states_BNC[:, 0]))
    else:
        found = model.pooler(states_BNC)
    return found


@contextmanager
def handing(given: Given) -> Iterator[Given]:
    """In this thread what is beneath a head answers what it is given."""
    before = getattr(_here, "given", None)
    _here.given = given
    try:
        yield given
    finally:
        _here.given = before
