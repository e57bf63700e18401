"""Whether a transformers model and an `Encoder` on its parameters are one function."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ...models import Encoder
from .classes import as_own
from .refusals import Refused

SHORT, LONG = 9, 24
"""Tokens of the two texts; the longer one passes a window, where there is one."""

NEAR = {
    torch.float64: 1e-4,
    torch.float32: 1e-4,
    torch.float16: 0.03,
    torch.bfloat16: 0.2,
}
"""By dtype: how far apart, by the largest value, two orders of the same sums may come out. Another
activation, another position or an adapter is much further."""


@torch.inference_mode()
def check_same(model: nn.Module, encoder: Encoder) -> Any:
    """Run both on two short made-up texts, one of them padded.

    Returns:
        What the model answers, by its own code.

    Raises:
        Refused: the answers differ.
    """
    ids, mask = _texts(encoder)
    with evaluating(model), unrounded(encoder):
        forward, given = as_own(model).forward, {"input_ids": ids, "attention_mask": mask}
        answer = forward(**given)
        if isinstance(answer, tuple):  # by its config
            answer = forward(**given, return_dict=True)
        theirs = _states(answer)
        ours = encoder(ids, mask)
    real = mask.bool()
    if theirs.shape != ours.shape:
        raise Refused(
            f"{type(model).__name__} answers {tuple(theirs.shape)}, and pyenc's encoder for its "
            f"config.json {tuple(ours.shape)}"
        )
    theirs, ours = theirs[real].double(), ours[real].double()
    off, size = float((theirs - ours).abs().max()), float(theirs.abs().max())
    if not off <= NEAR[encoder.dtype] * max(size, 1e-6):
        raise Refused(
            f"{type(model).__name__} computes another function than pyenc does for its "
            f"config.json: states up to {size:.3g} differ by {off:.1g}"
        )
    return answer


def _states(output: Any) -> Tensor:
    states = getattr(output, "last_hidden_state", None)
    if not isinstance(states, Tensor):
        raise Refused(f"its model answers {type(output).__name__} without last_hidden_state")
    return states


def _texts(encoder: Encoder) -> tuple[Tensor, Tensor]:
    """(ids, mask), (2, n) each; no id that may be padding, wherever the vocabulary has others."""
    config = encoder.config
    longest = LONG if config.window is None else max(LONG, config.window + 8)
    longest = min(longest, config.max_length)
    lengths = torch.tensor([longest, min(SHORT, longest)], dtype=torch.long, device=encoder.device)
    columns = torch.arange(longest, device=encoder.device)
    mask = (columns < lengths[:, None]).long()
    first = min(5, config.vocab_size - 1)
    ids = first + (columns + 97 * torch.arange(2, device=encoder.device)[:, None]) * 7919 % (
        config.vocab_size - first
    )
    return ids * mask, mask


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """All of its modules in `eval` mode, and afterwards as they were."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def unrounded(encoder: Encoder) -> torch.autocast:
    """Without autocast, under which two would be rounded, each in its own order."""
    return torch.autocast(encoder.device.type, enabled=False)
