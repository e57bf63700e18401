"""What the masked-LM head says of every token of texts."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from ..errors import InputError
from ..forking import check_forked
from .arguments import checked_texts
from .batching import token_batches
from .limits import checked_limit, count_long
from .loaded import Loaded
from .options import budget_of, check_on_long
from .packed import evaluating


def token_logits(
    encoder: Loaded, texts: Any, *, batch_tokens: Any, max_length: Any, on_long: Any
) -> list[np.ndarray] | np.ndarray:
    """What `TextEncoder.token_logits` gives, which explains it."""
    check_forked()
    encoder.model.check_head()
    listed, instructions = checked_texts(texts)
    if instructions is not None:
        raise InputError("token_logits takes plain texts, not [instruction, text] pairs")
    tokenizer, limit = encoder.needed_tokenizer(), encoder.max_length
    if max_length is not None:
        limit = checked_limit(max_length, tokenizer, encoder.model.config)
    check_on_long(on_long)
    budget = budget_of(batch_tokens, encoder)
    tokens = tokenizer(listed, limit)
    count_long(tokens, limit).report(on_long)
    rows: list[np.ndarray] = [np.empty(0)] * len(listed)
    with evaluating(encoder.model), torch.inference_mode():
        for batch in token_batches([len(t.ids) for t in tokens], budget):
            ids = torch.from_numpy(np.concatenate([tokens[i].ids for i in batch]))
            lengths = [len(tokens[i].ids) for i in batch]
            bounds = torch.from_numpy(np.cumsum([0, *lengths]))
            encoder.model.check(ids, bounds)
            states = encoder.model.forward_packed(
                ids.to(encoder.device), bounds.to(encoder.device), checked=True
            )
            # A text at a time: the logits of a batch may be larger than the model.
            for i, state in zip(batch, states.split(lengths), strict=True):
                rows[i] = encoder.model.logits(state).float().cpu().numpy()
    return rows[0] if isinstance(texts, str) else rows
