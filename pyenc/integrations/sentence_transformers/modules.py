"""What modules of sentence-transformers do while a model is accelerated.

Their tokenizer, their padded batch and their features stay as they are, so that whatever reads them
(trainers, losses, users) finds what it knows. Inside the first module the batch is packed, goes
through pyenc's encoder, and comes out padded again; the packed states travel with it to the means.
What is beneath a head is handed the padded states, and the head makes of them what it does.

Shapes: B rows, N padded length, T packed tokens, C channels.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ...models.packing import Packed
from ...text.pooling import pooled
from ..borrowed.batches import is_plain, is_small, packed_batch, packed_states
from ..borrowed.classes import Standing
from ..borrowed.handed import READ
from ..borrowed.heads import Head
from ..borrowed.on_parameters import Borrowed
from ..borrowed.slot import Slot, asks_for_more, is_traced
from .behind import Behind
from .refusals import LAST, has_head
from .splade import greatest, wants_greatest

PASSED = {
    "modality", "prompt_length", "task", "labels", "special_tokens_mask", "offset_mapping",
    "overflow_to_sample_mapping", "token_embeddings", "sentence_embedding",
}  # fmt: skip
"""Features that change nothing in an encoder: sentence-transformers' own, and what an earlier pass
left. With any other the model's own code is run."""

MEANS = {"mean", "weightedmean", "mean_sqrt_len_tokens"}
"""Poolings that are taken of packed states."""

PACKED = "_pyenc_packed"
"""Attribute of a tensor of token embeddings: the `Kept` of it."""

_here = threading.local()
"""`left`: a first module that is run by its own code, in this thread."""


@dataclass(frozen=True)
class Kept:
    """The packed states of padded ones, for as long as those are what they were made of."""

    packed: Packed
    hidden_TC: Tensor
    mask: Tensor
    """(B, N), a copy."""
    version: int | None
    """Of the padded states; None where torch counts none (inference mode)."""

    @classmethod
    def of(cls, packed: Packed, hidden_TC: Tensor, mask: Tensor, states_BNC: Tensor) -> Kept:
        version = None if states_BNC.is_inference() else states_BNC._version
        return cls(packed, hidden_TC, mask.clone(), version)

    def holds(self, mask: Any, states_BNC: Tensor) -> bool:
        """Whether neither was changed since: by a hook, or between two modules called by hand."""
        if not isinstance(mask, Tensor) or not torch.equal(mask, self.mask):
            return False
        if self.version is not None:
            return states_BNC._version == self.version
        flat_XC = states_BNC.flatten(0, 1)
        index = self.packed.index
        # A pass over memory, beside all the layers.
        return torch.equal(flat_XC if index is None else flat_XC[index], self.hidden_TC)


class FirstSlot(Slot):
    """What an accelerated first module knows of its model, and of what stands behind it."""

    def __init__(self, borrowed: Borrowed | None = None) -> None:
        super().__init__(borrowed)
        self.behind = Behind()


@contextmanager
def as_it_is(first: Any) -> Iterator[None]:
    """In this thread a first module is run by its own code."""
    before = getattr(_here, "left", None)
    _here.left = first
    try:
        yield
    finally:
        _here.left = before


class PackedTransformer(Standing):
    """Stands for `Transformer`: the encoder is pyenc's; a head on it is the model's own."""

    __slots__ = ()

    model: nn.Module
    transformer_task: str
    _pyenc: FirstSlot

    def forward(self, features: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        """As of `Transformer`; exact zeros where there is padding."""
        if "_pyenc" not in vars(self):  # made of this class, and not by `accelerate`
            return self.own().forward(features, **kwargs)  # type: ignore[no-any-return]
        borrowed, known = None, self._pyenc.borrowed
        # What is traced asks for no value: it would end the graph, and run outside of it.
        traced = is_traced() or getattr(_here, "left", None) is self
        # Asked first where it can be: to look a model over costs more than a few tokens gain.
        if not (kwargs or traced) and (known is None or not is_small(features, known)):
            borrowed = self._borrowed(features)
        if borrowed is None or (borrowed is not known and is_small(features, borrowed)):
            found: dict[str, Any] = self.own().forward(features, **kwargs)
            return found
        packed = packed_batch(features, borrowed)
        hidden_TC = packed_states(borrowed.encoder, packed)
        if borrowed.head is not None and wants_greatest(self, borrowed.head, features):
            greatest_B1V = greatest(packed, hidden_TC, self._logits_of(borrowed.head, features))
            if greatest_B1V is not None:
                features["token_embeddings"] = greatest_B1V
                return features
        states_BNC = packed.unpack(hidden_TC)
        if borrowed.head is not None:
            with borrowed.head.given(features, states_BNC) as given:
                answered: dict[str, Any] = self.own().forward(features)
            if not given.taken:
                self._pyenc.tell("what is beneath its head is given other tensors than it was")
            return answered
        mask = features["attention_mask"]
        setattr(states_BNC, PACKED, Kept.of(packed, hidden_TC, mask, states_BNC))
        features["token_embeddings"] = states_BNC
        return features

    def _logits_of(self, head: Head, features: dict[str, Any]) -> Callable[[Tensor], Tensor | None]:
        """States (1, T, C) to logits (1, T, V) by the head's own code; None where it takes none."""

        def logits_of(states: Tensor) -> Tensor | None:
            with head.given(features, states) as given:
                found: Tensor = self.own().forward(dict(features))["token_embeddings"]
            return found if given.taken else None

        return logits_of

    def _borrowed(self, features: dict[str, Any]) -> Borrowed | None:
        """The encoder, if it is to serve these features now."""
        last = self.transformer_task == LAST
        passed = PASSED | {"logits_to_keep"} if last else PASSED
        if not features.keys() <= READ | passed or not is_plain(features):
            return None
        if last and not bool(features["attention_mask"][:, -1:].all()):
            return None  # what reads the last logits would read padding's
        if asks_for_more(self.model):
            return None
        return self._pyenc.serving(self.model, features, has_head=has_head(self))


class PackedPooling(Standing):
    """Stands for `Pooling`: a mean of any kind, or several, is one pass over packed states each;
    other modes are their own, and so are those beside one of them."""

    __slots__ = ()

    pooling_mode: Any
    include_prompt: bool

    def forward(self, features: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        """As of `Pooling`."""
        states: Any = features.get("token_embeddings")
        found: Kept | None = getattr(states, PACKED, None)
        if found is not None:
            delattr(states, PACKED)  # not to be kept for as long as the features are
        if (
            found is None
            or not set(poolings := modes_of(self.pooling_mode)) <= MEANS
            or "token_weights_sum" in features
            or (packed := found.packed).has_holes
            or not found.holds(features.get("attention_mask"), states)
        ):
            whole: dict[str, Any] = self.own().forward(features, **kwargs)
            return whole
        hidden_TC = found.hidden_TC
        if states.requires_grad and torch.is_grad_enabled():
            # Of the padded states, whose gradient somebody may ask for, or hook.
            flat_XC = states.flatten(0, 1)
            hidden_TC = flat_XC if packed.index is None else flat_XC.index_select(0, packed.index)
        prompt = 0
        if not self.include_prompt and "prompt_length" in features:
            # One number for all rows, by itself or in a tensor of a trainer's.
            said = features["prompt_length"]
            prompt = int(said[0].item()) if isinstance(said, Tensor) else int(said)
        pooled_BC = pooled(hidden_TC, packed.cu_seqlens, poolings, skip_tokens=prompt)
        features["sentence_embedding"] = pooled_BC.to(hidden_TC.dtype)
        return features


def modes_of(mode: Any) -> tuple[str, ...]:
    """The names of a `pooling_mode`, which is one or several."""
    return (mode,) if isinstance(mode, str) else tuple(mode)
