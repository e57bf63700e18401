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
from ...ops.linear import few_rows_gain
from ...ops.registered import PLAIN
from ...text.pooling import pooled
from .batches import packed_batch, packed_states
from .behind import Behind
from .borrowed import Borrowed
from .classes import Standing
from .heads import READ, Head, has_head
from .refusals import LAST, Hooked, Refused, warn
from .splade import greatest, wants_greatest
from .watched import Watched

PASSED = {
    "modality", "prompt_length", "task", "labels", "special_tokens_mask", "offset_mapping",
    "overflow_to_sample_mapping", "token_embeddings", "sentence_embedding",
}  # fmt: skip
"""Features that change nothing in an encoder: sentence-transformers' own, and what an earlier pass
left. With any other the model's own code is run."""

SMALL = 2**27
"""Tokens, and thirty-two times the padding beside them, times the square of the channels: below it
a batch is computed by the model's own code, for the calls cost more there than the padding does.
Measured where a batch takes as long either way (bench/NOTES.md)."""

SMALL_PACKED = 2**20
"""The same where few rows have products of their own, or take packed weights, and gain."""

MEANS = {"mean", "weightedmean", "mean_sqrt_len_tokens"}
"""Poolings that are taken of packed states."""

PACKED = "_pyenc_packed"
"""Attribute of a tensor of token embeddings: the `Kept` of it."""

_lock = threading.RLock()

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


class Slot:
    """What an accelerated module knows of its model; in a copy or another process, nothing yet."""

    def __init__(self, borrowed: Borrowed | None = None) -> None:
        self.borrowed = borrowed
        self.refused: Watched | None = None
        """A model as it was when it could not be served, so that it is not tried again."""
        self.behind = Behind()
        self.told: set[str] = set()

    def __reduce__(self) -> tuple[Any, ...]:
        return Slot, ()

    def __deepcopy__(self, memo: dict[int, Any]) -> Slot:
        return Slot()

    def tell(self, reason: str) -> None:
        """Warn, once."""
        if reason not in self.told:
            self.told.add(reason)
            warn(f"not accelerated for now, by pyenc.accelerate's word: {reason}")


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
    _pyenc: Slot

    def forward(self, features: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        """As of `Transformer`; exact zeros where there is padding."""
        borrowed, known = None, self._pyenc.borrowed
        # What is traced asks for no value: it would end the graph, and run outside of it.
        traced = torch.compiler.is_compiling() or torch.jit.is_tracing()
        traced = traced or getattr(_here, "left", None) is self
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
        model = self.model
        settings: Any = getattr(model, "config", None)
        if (
            getattr(settings, "output_hidden_states", False)
            or getattr(settings, "output_attentions", False)
            # A replica's weights are no parameters.
            or getattr(model, "_is_replica", False)
        ):
            return None
        borrowed = self._current()
        if borrowed is None:
            return None
        if not borrowed.serves():
            return None
        if borrowed.hooked():
            self._pyenc.tell("hooks are set on modules of its model, which would not be run")
            return None
        ids, mask = features["input_ids"], features["attention_mask"]
        if borrowed.head is not None and not borrowed.head.reads_tokens(ids, mask):
            return None
        return borrowed

    def _current(self) -> Borrowed | None:
        """The encoder on what the model's parameters are now."""
        slot, model = self._pyenc, self.model
        borrowed = slot.borrowed  # which another thread may take away meanwhile
        if borrowed is not None and not borrowed.changed(model):
            return borrowed
        with _lock:
            if slot.borrowed is not None and slot.borrowed.changed(model):
                slot.borrowed = None
            if slot.borrowed is None and (slot.refused is None or slot.refused.changed(model)):
                try:
                    # Nothing that is made here may belong to inference alone.
                    with torch.inference_mode(False):
                        slot.borrowed = Borrowed(model, has_head=has_head(self))
                    slot.refused = None
                except Hooked as reason:  # nothing to remember: hooks are taken off
                    slot.tell(str(reason))
                except Refused as reason:
                    slot.refused = Watched(model)
                    slot.tell(str(reason))
            return slot.borrowed


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


def is_plain(features: dict[str, Any]) -> bool:
    """Whether they are rows of token ids under zeros and ones, (B, N) each.

    Weights, and masks that are added to scores or spread over rows, are for the model's own code.
    """
    ids, mask = features.get("input_ids"), features.get("attention_mask")
    types = features.get("token_type_ids", ids)
    return (
        isinstance(ids, Tensor)
        and isinstance(mask, Tensor)
        and isinstance(types, Tensor)
        and ids.ndim == 2
        and ids.shape == mask.shape == types.shape
        and type(ones := ((mask == 0) | (mask == 1)).all()) in PLAIN  # a fake one has no value
        and bool(ones)
    )


def is_small(features: dict[str, Any], borrowed: Borrowed) -> bool:
    """Whether the features' tokens, if they have any, are too few to gain without padding."""
    ids, mask = features.get("input_ids"), features.get("attention_mask")
    if not isinstance(ids, Tensor) or not isinstance(mask, Tensor) or ids.device.type != "cpu":
        return False
    counted = mask.count_nonzero()
    if type(counted) not in PLAIN:  # a fake one has no value
        return True
    tokens = int(counted)
    weighed = tokens + 32 * (ids.numel() - tokens)
    encoder = borrowed.encoder
    plainly = not (torch.is_grad_enabled() or torch.is_autocast_enabled("cpu"))
    least = SMALL_PACKED if plainly and few_rows_gain(encoder.dtype) else SMALL
    return weighed * encoder.config.hidden_size**2 < least
