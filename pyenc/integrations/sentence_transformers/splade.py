"""SPLADE without the words of padding: in `SparseEncoder.encode` the masked-LM head takes packed
states, some sequences at a time, and of their logits each sequence's greatest are kept.

The pooling keeps of log(1 + relu(logits)) the greatest, which is that of the greatest logit, as
both functions rise. So the padded logits are never made, of 32 texts of 1,000 tokens and 30,522
words 4 GB.

Shapes: B sequences, N padded length, T packed tokens, C channels, V words.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from ...models.packing import Packed
from ..borrowed.batches import groups
from ..borrowed.classes import Standing
from ..borrowed.heads import Head
from ..borrowed.refusals import interfered

TOKENS = 512
"""Tokens whose logits are made at a time, or one sequence: enough for a product to be fast."""

GREATEST = "_pyenc_greatest"
"""Attribute of "token_embeddings" (B, 1, V) that are each sequence's greatest logits."""

_here = threading.local()
"""`model`: the one that encodes in this thread."""


class PackedSplade(Standing):
    """Stands for `SpladePooling`: takes each sequence's greatest logits, where it is given them."""

    __slots__ = ()

    pooling_strategy: str
    _forward_hooks: Any
    _forward_pre_hooks: Any

    def forward(self, features: dict[str, Any]) -> dict[str, Any]:
        """As of `SpladePooling`."""
        logits: Any = features.get("token_embeddings")
        if not hasattr(logits, GREATEST):
            whole: dict[str, Any] = self.own().forward(features)
            return whole
        del features["token_embeddings"]  # which they are not: nobody is to read them later
        ones = logits.new_ones(logits.shape[:2])
        pooled = self.own().forward({"token_embeddings": logits, "attention_mask": ones})
        return features | {"sentence_embedding": pooled["sentence_embedding"]}


@contextmanager
def encoding(model: Any) -> Iterator[None]:
    """In this thread a model's `encode` is run, of which nothing but the pooled vectors is seen."""
    before = getattr(_here, "model", None)
    _here.model = model
    try:
        yield
    finally:
        _here.model = before


def wants_greatest(first: Any, head: Head, features: dict[str, Any]) -> bool:
    """Whether what takes the logits of a first module keeps the greatest alone, and whoever else
    would see them, or the states that they are made of, is not there: now, for it may have come
    since the last batch."""
    model = getattr(_here, "model", None)
    # `encode` is one with it; what is called before a pass, such as `preprocess`, hardly.
    if model is None or not torch.is_inference_mode_enabled():
        return False
    # No module behind the two.
    if len(model) != 2 or model[0] is not first:
        return False
    pooling = model[1]
    return (
        isinstance(pooling, PackedSplade)
        and pooling.pooling_strategy == "max"
        and head.by_place
        and "labels" not in features  # whose loss is of padded logits
        and not any(map(interfered, (model, first, pooling, *head.modules)))
    )


def greatest(
    packed: Packed, hidden_TC: Tensor, logits_of: Callable[[Tensor], Tensor | None]
) -> Tensor | None:
    """(B, 1, V), zeros of a sequence without tokens.

    Args:
        logits_of: states (1, T, C) of some sequences to their logits (1, T, V), or None.

    Returns:
        None where that gives none, or numbers that are not finite, or there is no token.
    """
    bounds = packed.cu_seqlens.tolist()
    found_BV: Tensor | None = None
    for first, last in groups(bounds, TOKENS):
        begin = bounds[first]
        if bounds[last] > begin:
            logits = logits_of(hidden_TC[None, begin : bounds[last]])
            if logits is None:
                return None
            if found_BV is None:
                found_BV = logits.new_zeros(len(bounds) - 1, logits.shape[-1])
            for row, (a, b) in enumerate(itertools.pairwise(bounds[first : last + 1]), first):
                if b > a:
                    torch.amax(logits[0, a - begin : b - begin], 0, out=found_BV[row])
    # Of padding too they would not be finite, and are no zeros when they are masked.
    if found_BV is None or not bool(found_BV.isfinite().all()):
        return None
    found = found_BV[:, None]
    setattr(found, GREATEST, True)
    return found
