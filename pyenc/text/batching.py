"""Cutting many token sequences into packed batches: longest first, by a budget of tokens."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ..errors import InputError

BATCH_TOKENS = {"cpu": 4096, "cuda": 65536}
"""Tokens of a batch: enough to fill the machine, few enough for its caches and memory."""


def token_batches(lengths: Sequence[int], budget: int) -> Iterator[list[int]]:
    """Indices of the sequences of each batch, longest first.

    Sequences of like length share a batch, and the first batch needs the most memory, so that one
    too large fails at once. A sequence longer than the budget is a batch of its own.

    Args:
        lengths: tokens of each sequence.
        budget: tokens of a batch at the most.
    """
    if budget < 1:
        raise InputError(f"batch_tokens must be at least 1, got {budget}")
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    batch: list[int] = []
    used = 0
    for i in order:
        if batch and used + lengths[i] > budget:
            yield batch
            batch, used = [], 0
        batch.append(i)
        used += lengths[i]
    if batch:
        yield batch
