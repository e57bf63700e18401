"""The programs that are compared on a card, by model and name, in bfloat16.

Each is loaded from what `bench.subjects` gives, and gives a `Prepare` of `card_call`.
"""

from __future__ import annotations

from functools import partial

import torch

from bench.peers import pyenc_encoder, torch_encoder, transformers
from bench.peers.encoders import BF16, HALF, Peer


def peers(model: str, device: torch.device) -> dict[str, Peer]:
    """Those of a model; pyenc as a user calls it is the first."""
    return _from_ids(device)


def _from_ids(device: torch.device) -> dict[str, Peer]:
    """Jina-base's shape."""

    def peer(load: object, tolerance: float | None = HALF) -> Peer:
        return Peer(partial(load, dtype=BF16, device=device), "bfloat16", tolerance)  # type: ignore[call-overload]

    return {
        "pyenc": peer(pyenc_encoder.packed),
        "pyenc, graph replay": peer(pyenc_encoder.replayed),
        "torch, SDPA, dense bias": peer(torch_encoder.in_rows),
        "torch.compile, dense bias": peer(partial(torch_encoder.in_rows, compiled=True)),
        "transformers BertModel, no ALiBi": peer(transformers.bert_in_rows, None),
    }
