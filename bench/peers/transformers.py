"""transformers: AutoModel with the pooling of model cards; its own BERT of Jina-small's width."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import pyenc
from bench.peers import card_call
from bench.peers.encoder_call import MAX_LENGTH, Ids, Texts, padded


def by_hand(folder: Path) -> Texts:
    """AutoModel and mean pooling as model cards show it, batches of 32, sorted by characters."""
    from transformers import AutoModel, AutoTokenizer

    no_bars()
    tokenizer = AutoTokenizer.from_pretrained(str(folder))
    model = AutoModel.from_pretrained(str(folder)).eval()

    def run(texts: list[str]) -> np.ndarray:
        order = sorted(range(len(texts)), key=lambda i: -len(texts[i]))
        vectors = torch.empty(len(texts), model.config.hidden_size)
        for start in range(0, len(order), 32):
            rows = order[start : start + 32]
            batch = tokenizer(
                [texts[i] for i in rows], padding=True, truncation=True,
                max_length=MAX_LENGTH, return_tensors="pt",
            )  # fmt: skip
            with torch.inference_mode():
                hidden = model(**batch).last_hidden_state
                mask = batch["attention_mask"].unsqueeze(-1).to(hidden.dtype)
                pooled = (hidden * mask).sum(1) / mask.sum(1).clamp(min=1e-9)
                vectors[rows] = F.normalize(pooled)
        return vectors.numpy()

    return run


def no_bars() -> None:
    """transformers draws a bar for every checkpoint that it loads."""
    from transformers.utils import logging

    logging.disable_progress_bar()


class Hidden(nn.Module):
    """A model from tensors to a tensor, as an export takes it."""

    INPUTS = ("input_ids", "attention_mask")

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        out: Tensor = self.model(
            input_ids=input_ids, attention_mask=attention_mask
        ).last_hidden_state
        return out


def padded_ids(folder: Path, dtype: torch.dtype = torch.float32) -> Ids:
    """AutoModel in padded rows, SDPA where the model has it."""
    from transformers import AutoModel

    no_bars()
    model = Hidden(AutoModel.from_pretrained(str(folder), dtype=dtype).eval())

    def run(ids_BN: Tensor, mask_BN: Tensor | None) -> Tensor:
        mask = torch.ones_like(ids_BN) if mask_BN is None else mask_BN.long()
        out: Tensor = model(ids_BN, mask)
        return out

    return padded(run)


def bert_model(encoder: pyenc.Encoder) -> Ids:
    """transformers' own BERT of the same width and depth: another function, without ALiBi.

    What plain transformers runs natively at this length, and so a floor for a program that has a
    bias to add. 3,072 wide where the gated encoder has 2,048, for the same arithmetic.
    """
    model = _bert(encoder)

    def run(ids_BN: Tensor, mask_BN: Tensor | None) -> Tensor:
        mask = torch.ones_like(ids_BN) if mask_BN is None else mask_BN.long()
        hidden: Tensor = model(ids_BN, attention_mask=mask)[0]
        return hidden

    return padded(run)


def bert_in_rows(
    encoder: pyenc.Encoder, *, dtype: torch.dtype, device: torch.device
) -> card_call.Prepare:
    """The same on a device."""
    model = _bert(encoder).to(device, dtype)

    def mask(ids_BN: Tensor, mask_BN: Tensor | None) -> Tensor | None:
        return None if mask_BN is None else mask_BN.long()

    def forward(ids_BN: Tensor, mask_BN: Tensor | None) -> Tensor:
        hidden: Tensor = model(ids_BN, attention_mask=mask_BN)[0]
        return hidden

    return lambda texts: card_call.in_rows(texts, mask, forward)


def _bert(encoder: pyenc.Encoder) -> nn.Module:
    from transformers import BertConfig, BertModel

    c = encoder.config
    config = BertConfig(
        vocab_size=c.vocab_size, hidden_size=c.hidden_size, num_hidden_layers=c.num_layers,
        num_attention_heads=c.num_heads, intermediate_size=c.intermediate_size * 3 // 2,
        max_position_embeddings=c.max_length, attn_implementation="sdpa",
    )  # fmt: skip
    torch.manual_seed(0)
    model: nn.Module = BertModel(config, add_pooling_layer=False).eval()
    return model
