"""all-MiniLM-L6-v2 with its real weights, from strings to unit vectors, in float32 on the CPU.

Each function loads from the checkpoint's folder and returns what runs: texts to (B, C). A peer
whose library is not installed raises ImportError.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import peers_onnx
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import pyenc

Texts = Callable[[list[str]], np.ndarray]

MAX_LENGTH = 512
"""The position table's; the checkpoint's sentence-transformers files say 256."""


def ours(folder: Path) -> Texts:
    encoder = pyenc.load(folder, device="cpu")
    return lambda texts: encoder.encode(texts, max_length=MAX_LENGTH, progress=False)


def sentence_transformers(folder: Path) -> Texts:
    """Its default: the torch backend, batches of 32 texts sorted by length."""
    from sentence_transformers import SentenceTransformer

    _no_bars()
    model = SentenceTransformer(str(folder), device="cpu")
    model.max_seq_length = MAX_LENGTH
    return lambda texts: model.encode(texts, show_progress_bar=False)


def by_hand(folder: Path) -> Texts:
    """AutoModel and mean pooling as model cards show it, batches of 32, sorted by characters."""
    from transformers import AutoModel, AutoTokenizer

    _no_bars()
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


def _no_bars() -> None:
    """transformers draws a bar for every checkpoint that it loads."""
    from transformers.utils import logging

    logging.disable_progress_bar()


class _Hidden(nn.Module):
    """BERT from tensors to a tensor, as an export takes it."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor) -> Tensor:
        out: Tensor = self.model(
            input_ids=input_ids, attention_mask=attention_mask, token_type_ids=token_type_ids
        ).last_hidden_state
        return out


def onnx_runtime(folder: Path) -> Texts:
    """sentence-transformers' ONNX backend: its own steps with ONNX Runtime for the model.

    Its package for that wants another transformers than the others here, so the model is exported
    here and stands in for the torch one, where that backend's would.
    """
    from sentence_transformers import SentenceTransformer
    from transformers.modeling_outputs import BaseModelOutput

    _no_bars()
    encoder = SentenceTransformer(str(folder), device="cpu")
    encoder.max_seq_length = MAX_LENGTH
    model: Any = encoder[0].model
    example = {
        name: torch.ones(2, 7, dtype=torch.int64)
        for name in ("input_ids", "attention_mask", "token_type_ids")
    }
    with tempfile.TemporaryDirectory() as made:
        session = peers_onnx.session(_Hidden(model), example, Path(made))

    def forward(
        input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor, **_: Any
    ) -> BaseModelOutput:
        given = {
            "input_ids": input_ids, "attention_mask": attention_mask,
            "token_type_ids": token_type_ids,
        }  # fmt: skip
        return BaseModelOutput(last_hidden_state=session(given))

    model.forward = forward
    return lambda texts: encoder.encode(texts, show_progress_bar=False)


def oracle(folder: Path) -> Texts:
    """The readable dense reference in float64."""
    encoder = pyenc.load(folder, device="cpu", dtype=torch.float64, backend="reference")
    return lambda texts: encoder.encode(texts, max_length=MAX_LENGTH, progress=False)
