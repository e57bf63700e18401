"""One packed batch through a model: what a process does, here or elsewhere, with ids."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..models import Encoder
from .finish import Finish
from .pooling import pool
from .recipe import Recipe
from .transfer import sent


@dataclass(frozen=True)
class Packed:
    """Sequences side by side."""

    ids: np.ndarray  # (T,) integers
    lengths: np.ndarray  # (B,) int64
    skip: np.ndarray  # (B,) int64: leading tokens that pooling leaves out


def run_packed(
    model: Encoder, recipe: Recipe, batch: Packed, output: str, finish: Finish
) -> Tensor:
    """Pooled (B, dim), or every token's state (T, dim); float32, on the model's device."""
    ids = torch.from_numpy(batch.ids.astype(np.int64, copy=False))
    cu_seqlens = torch.from_numpy(np.cumsum(np.concatenate([[0], batch.lengths])))
    model.check(ids, cu_seqlens)  # here, where looking at them waits for nobody
    parts = [ids.numpy(), cu_seqlens.numpy(), *([batch.skip] if batch.skip.any() else [])]
    ids, cu_seqlens, *skipped = sent(parts, model.device)
    leading: Tensor | int = skipped[0] if skipped else 0
    with evaluating(model), torch.inference_mode():
        values = model.forward_packed(ids, cu_seqlens, checked=True)
        if output == "pooled":
            values = pool(values, cu_seqlens, recipe, skip_tokens=leading, backend=model.backend)
        return finish(values)


@contextmanager
def evaluating(model: Encoder) -> Iterator[None]:
    """No dropout while texts are encoded, whatever mode training left the model in."""
    training = model.training
    if training:
        model.eval()
    try:
        yield
    finally:
        if training:
            model.train()
