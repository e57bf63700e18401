"""How every peer of a whole encoder is called on a card: on inputs that lie there beforehand.

What loads a program gives its `Prepare`: token ids in the form that the program takes them, biases
and masks are made by it, before the clock starts, and count as the program's memory.

Shapes: B rows, N padded length, C channels, T tokens of all texts.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bench.compare import Ready

Prepare = Callable[[Any], Ready]
"""Texts, or token ids on the card, one (N,) a text; "out" of the results is (B, C) or (T, C)."""

BATCH = 32
"""Rows at a time where texts differ in length, sorted by it: sentence-transformers' default."""

MULTIPLE = 8
"""Of which a padded length is one: SDPA's kernels want rows of a bias to begin at 16 bytes."""


def vectors_of(out: np.ndarray) -> dict[str, Tensor]:
    """The results of `encode`."""
    return {"out": torch.from_numpy(out)}


def in_rows(
    texts: list[Tensor],
    beside: Callable[[Tensor, Tensor | None], Any],
    forward: Callable[[Tensor, Any], Tensor],
    mode: Callable[[], Any] = torch.inference_mode,
) -> Ready:
    """In padded rows: all at once where texts are of one length, else a batch at a time.

    Args:
        beside: ids (B, N) and the mask of real tokens (B, N), None where all are: to what a
            batch needs besides, made once.
        forward: ids and that, to (B, N, C).
    """
    batches: list[tuple[Tensor, Any]] = []
    rows = list(range(len(texts)))
    with mode():
        if len({len(ids) for ids in texts}) == 1:
            ids_BN = torch.stack(texts)
            batches.append((ids_BN, beside(ids_BN, None)))
        else:
            rows.sort(key=lambda i: -len(texts[i]))
            for start in range(0, len(rows), BATCH):
                ids_BN, mask_BN = _padded([texts[i] for i in rows[start : start + BATCH]])
                batches.append((ids_BN, beside(ids_BN, mask_BN)))

    def run() -> list[Tensor]:
        with mode():
            return [forward(ids_BN, more) for ids_BN, more in batches]

    def results(out: list[Tensor]) -> dict[str, Tensor]:
        hidden = [row for batch_BNC in out for row in batch_BNC]
        found = {i: row[: len(texts[i])] for i, row in zip(rows, hidden, strict=True)}
        return {"out": torch.cat([found[i] for i in range(len(texts))])}

    return Ready(run, results)


def _padded(texts: list[Tensor]) -> tuple[Tensor, Tensor]:
    """(ids, mask), (B, N) each."""
    ids_BN = nn.utils.rnn.pad_sequence(texts, batch_first=True)
    ids_BN = nn.functional.pad(ids_BN, (0, -ids_BN.shape[1] % MULTIPLE))
    sizes = torch.tensor([len(ids) for ids in texts], device=ids_BN.device)
    return ids_BN, torch.arange(ids_BN.shape[1], device=ids_BN.device) < sizes[:, None]
