"""sentence-transformers: its default torch backend, and its own steps around ONNX Runtime."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench.compare import Ready
from bench.peers import onnx_runtime
from bench.peers.card_call import Prepare, vectors_of
from bench.peers.encoder_call import MAX_LENGTH, Texts
from bench.peers.transformers import Hidden, no_bars


def torch_backend(folder: Path, dtype: torch.dtype = torch.float32) -> Texts:
    """Its default: the torch backend, batches of 32 texts sorted by length."""
    from sentence_transformers import SentenceTransformer

    no_bars()
    model = SentenceTransformer(str(folder), device="cpu", model_kwargs={"dtype": dtype})
    model.max_seq_length = MAX_LENGTH
    return lambda texts: model.encode(texts, show_progress_bar=False)


def placed_texts(folder: Path, *, dtype: torch.dtype, device: torch.device) -> Prepare:
    """Its default on a device: the torch backend with SDPA, weights in a dtype, batches of 32."""
    from sentence_transformers import SentenceTransformer

    no_bars()
    model = SentenceTransformer(
        str(folder), device=str(device), model_kwargs={"dtype": dtype}, local_files_only=True
    )
    model.max_seq_length = MAX_LENGTH
    return lambda texts: Ready(lambda: model.encode(texts, show_progress_bar=False), vectors_of)


def onnx_backend(folder: Path, *, eight_bits: bool = False) -> Texts:
    """sentence-transformers' ONNX backend: its own steps with ONNX Runtime for the model.

    Its package for that wants another transformers than the others here, so the model is exported
    here and stands in for the torch one, where that backend's would.
    """
    from sentence_transformers import SentenceTransformer
    from transformers.modeling_outputs import BaseModelOutput

    no_bars()
    encoder = SentenceTransformer(str(folder), device="cpu")
    encoder.max_seq_length = MAX_LENGTH
    model: Any = encoder[0].model
    example = {name: torch.ones(2, 7, dtype=torch.int64) for name in Hidden.INPUTS}
    with tempfile.TemporaryDirectory() as made:
        session = onnx_runtime.session(Hidden(model), example, Path(made), eight_bits=eight_bits)

    # Token types are all zeros, which the model adds by itself.
    def forward(input_ids: Tensor, attention_mask: Tensor, **_: Any) -> BaseModelOutput:
        given = {"input_ids": input_ids, "attention_mask": attention_mask}
        return BaseModelOutput(last_hidden_state=session(given))

    model.forward = forward
    return lambda texts: encoder.encode(texts, show_progress_bar=False)
