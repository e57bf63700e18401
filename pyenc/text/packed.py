"""One packed batch through a model: what a process does, here or elsewhere, with ids."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..models import Encoder, row_counts
from . import graphs
from .finish import Finish
from .graph_shapes import filled
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
    try:
        return _run(model, recipe, batch, output, finish)
    except torch.OutOfMemoryError:
        # What graphs of earlier batches hold is worth less than this one.
        if not graphs.let_go(model):
            raise
    return _run(model, recipe, batch, output, finish)


def _run(model: Encoder, recipe: Recipe, batch: Packed, output: str, finish: Finish) -> Tensor:
    bounds = np.cumsum(np.concatenate([[0], batch.lengths]))
    numbers = batch.ids.astype(np.int64, copy=False)
    # Here, where looking at them waits for nobody.
    model.check(torch.from_numpy(numbers), torch.from_numpy(bounds))
    tokens, sequences = len(numbers), len(batch.lengths)
    longest = int(batch.lengths.max(initial=0))
    shape = graphs.shape_for(model, tokens, sequences)
    if shape is not None:
        numbers, bounds = filled(numbers, bounds, shape, model.config.padding_id)
    elif row_counts.pays(model, tokens):
        given = torch.from_numpy(numbers), torch.from_numpy(bounds)
        numbers, bounds = (x.numpy() for x in row_counts.filled(*given, model.config.padding_id))
    parts = [numbers, bounds, *([batch.skip] if batch.skip.any() else [])]
    ids, cu_seqlens, *skipped = sent(parts, model.device)
    leading: Tensor | int = skipped[0] if skipped else 0
    with evaluating(model), torch.inference_mode():
        if shape is None:
            values = model.forward_packed(ids, cu_seqlens, span=longest, checked=True)
        else:
            values = graphs.forward(model, ids, cu_seqlens, tokens, sequences, longest)
        values, cu_seqlens = values[:tokens], cu_seqlens[: sequences + 1]
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
