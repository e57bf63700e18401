"""How every peer of a whole encoder is called: on texts, or on token ids in padded rows.

What loads a program takes the checkpoint's folder (MiniLM) or the `Encoder` with the weights (Jina)
and returns what runs. One whose library is not installed raises ImportError.

Shapes: B rows, N padded length, C channels, T tokens of all texts.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import pyenc

Texts = Callable[[list[str]], np.ndarray]
"""Texts to (B, C)."""

Ids = Callable[[list[Tensor]], Tensor]
"""Token ids, one (N,) a text, to hidden states (T, C), one text after the other."""

Padded = Callable[[Tensor, Tensor | None], Tensor]
"""Token ids (B, N) and a mask (B, N), None where all are tokens: to (B, N, C)."""

BATCH = 16
"""Rows at a time where texts differ in length, sorted by it."""

MAX_LENGTH = 512
"""The position table's; the checkpoint's sentence-transformers files say 256."""


def one_by_one(load: Callable[[pyenc.Encoder], Ids]) -> Callable[[pyenc.Encoder], Ids]:
    """Text by text, so that none is padded."""

    def loaded(encoder: pyenc.Encoder) -> Ids:
        run = load(encoder)
        return lambda texts: torch.cat([run([ids]) for ids in texts])

    return loaded


def padded(run: Padded, mode: Callable[[], Any] = torch.inference_mode) -> Ids:
    """In rows: all at once where they are of one length, else sorted by it, a batch at a time."""

    def call(texts: list[Tensor]) -> Tensor:
        with mode():
            if len({len(ids) for ids in texts}) == 1:
                return run(torch.stack(texts), None).flatten(0, 1).float()
            order = sorted(range(len(texts)), key=lambda i: -len(texts[i]))
            found: dict[int, Tensor] = {}
            for start in range(0, len(order), BATCH):
                rows = order[start : start + BATCH]
                batch = [texts[i] for i in rows]
                ids = nn.utils.rnn.pad_sequence(batch, batch_first=True)
                sizes = torch.tensor([len(x) for x in batch])
                hidden = run(ids, torch.arange(ids.shape[1]) < sizes[:, None]).float()
                found |= {i: hidden[row, : len(texts[i])] for row, i in enumerate(rows)}
            return torch.cat([found[i] for i in range(len(texts))])

    return call
