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
    device = model.device
    leading: Tensor | int = 0
    if batch.skip.any():
        leading = torch.from_numpy(batch.skip).to(device)
    ids, cu_seqlens = ids.to(device), cu_seqlens.to(device)
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
