"""The programs that are compared on a card, by model and name, in bfloat16.

Each is loaded from what `bench.subjects` gives, and gives a `Prepare` of `card_call`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch

from bench.peers import pyenc_encoder, sentence_transformers, torch_encoder, transformers
from bench.peers.card_call import Prepare
from bench.peers.encoders import BF16, HALF, Peer

VECTORS = 2e-3
"""Between unit vectors of 768: twice what bfloat16 costs either program on a CPU."""


def peers(model: str, device: torch.device) -> dict[str, Peer]:
    """Those of a model; pyenc as a user calls it is the first."""

    def peer(load: Callable[..., Prepare], tolerance: float | None = HALF) -> Peer:
        return Peer(partial(load, dtype=BF16, device=device), "bfloat16", tolerance)

    if model == "bert-base":
        return {
            "pyenc": peer(pyenc_encoder.placed_texts, VECTORS),
            "sentence-transformers": peer(sentence_transformers.placed_texts, VECTORS),
        }
    return {
        "pyenc": peer(pyenc_encoder.packed),
        "pyenc, graph replay": peer(pyenc_encoder.replayed),
        "torch, SDPA, dense bias": peer(torch_encoder.in_rows),
        "torch.compile, dense bias": peer(partial(torch_encoder.in_rows, compiled=True)),
        "transformers BertModel, no ALiBi": peer(transformers.bert_in_rows, None),
    }
