"""The programs that are compared: each a function that loads and returns what runs.

Everything is float32 on the CPU, with each library's defaults unless said otherwise. A peer whose
library is not installed raises ImportError and is listed as absent.

Shapes: B rows, N padded length, H heads, D head dim, C channels.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import pyenc
from pyenc.ops import alibi_slopes

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # nothing here needs a network

Texts = Callable[[list[str]], np.ndarray]
"""Texts to unit vectors (B, C)."""
Ids = Callable[[Tensor], Tensor]
"""Token ids (B, N) to hidden states (B, N, C)."""

MINILM_MAX_LENGTH = 512
"""The position table's; the checkpoint's sentence-transformers files say 256."""


# ---- MiniLM, from strings ---------------------------------------------------------------------


def minilm_pyenc(folder: Path) -> Texts:
    encoder = pyenc.load(folder, device="cpu")
    return lambda texts: encoder.encode(texts, max_length=MINILM_MAX_LENGTH, progress=False)


def minilm_sentence_transformers(folder: Path) -> Texts:
    """Its default: the torch backend, batches of 32 texts sorted by length."""
    from sentence_transformers import SentenceTransformer

    _no_bars()
    model = SentenceTransformer(str(folder), device="cpu")
    model.max_seq_length = MINILM_MAX_LENGTH
    return lambda texts: model.encode(texts, show_progress_bar=False)


def minilm_transformers(folder: Path) -> Texts:
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
                max_length=MINILM_MAX_LENGTH, return_tensors="pt",
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


# ---- Jina-small's shape, from token ids -------------------------------------------------------


def jina_pyenc(encoder: pyenc.Encoder) -> Ids:
    """The padded call, packing included."""

    def run(ids_BN: Tensor) -> Tensor:
        with torch.inference_mode():
            return encoder(ids_BN, torch.ones_like(ids_BN))

    return run


def jina_sdpa(encoder: pyenc.Encoder) -> Ids:
    return _plain(encoder, eager=False)


def jina_eager(encoder: pyenc.Encoder) -> Ids:
    return _plain(encoder, eager=True)


def jina_bert_model(encoder: pyenc.Encoder) -> Ids:
    """transformers' own BERT of the same width and depth: another function, without ALiBi.

    What plain transformers runs natively at this length, and so a floor for a program that has a
    bias to add. 3,072 wide where the gated encoder has 2,048, for the same arithmetic.
    """
    from transformers import BertConfig, BertModel

    c = encoder.config
    config = BertConfig(
        vocab_size=c.vocab_size, hidden_size=c.hidden_size, num_hidden_layers=c.num_layers,
        num_attention_heads=c.num_heads, intermediate_size=c.intermediate_size * 3 // 2,
        max_position_embeddings=c.max_length, attn_implementation="sdpa",
    )  # fmt: skip
    torch.manual_seed(0)
    model = BertModel(config, add_pooling_layer=False).eval()

    def run(ids_BN: Tensor) -> Tensor:
        with torch.inference_mode():
            hidden: Tensor = model(ids_BN, attention_mask=torch.ones_like(ids_BN))[0]
            return hidden

    return run


def _plain(encoder: pyenc.Encoder, eager: bool) -> Ids:
    model = PlainEncoder(encoder, eager)

    def run(ids_BN: Tensor) -> Tensor:
        with torch.inference_mode():
            hidden: Tensor = model(ids_BN)
            return hidden

    return run


class PlainEncoder(nn.Module):
    """The same function with the same weights as its author would write it in plain torch.

    A dense ALiBi bias (1, H, N, N), made once and kept, goes to `scaled_dot_product_attention` or
    to softmax(QK^T + bias) V. Rows are of equal length here, so there is no padding to mask.
    """

    def __init__(self, encoder: pyenc.Encoder, eager: bool) -> None:
        super().__init__()
        self.encoder = encoder
        self.eager = eager
        self._bias = torch.empty(1, 0, 0, 0)

    def forward(self, ids_BN: Tensor) -> Tensor:
        e = self.encoder.embeddings
        assert e.token_type is not None
        x_BNC = _norm(e.norm, e.word(ids_BN) + e.token_type.weight[0])
        bias = self.bias(ids_BN.shape[1])
        for layer in self.encoder.layers:
            x_BNC = _norm(
                layer.attention_norm, x_BNC + self.attention(layer.attention, x_BNC, bias)
            )
            gate, value = layer.feed_forward.up(x_BNC).chunk(2, dim=-1)
            forward = layer.feed_forward.down(F.gelu(gate) * value)
            x_BNC = _norm(layer.feed_forward_norm, x_BNC + forward)
        return x_BNC

    def attention(self, module: Any, x_BNC: Tensor, bias: Tensor) -> Tensor:
        qkv = module.qkv(x_BNC).unflatten(-1, (3, *module.heads)).permute(2, 0, 3, 1, 4)
        q_BHND, k_BHND, v_BHND = qkv
        if self.eager:
            score = q_BHND @ k_BHND.transpose(-1, -2) * q_BHND.shape[-1] ** -0.5 + bias
            out_BHND = score.softmax(-1) @ v_BHND
        else:
            out_BHND = F.scaled_dot_product_attention(q_BHND, k_BHND, v_BHND, attn_mask=bias)
        out: Tensor = module.out(out_BHND.transpose(1, 2).flatten(2))
        return out

    def bias(self, n: int) -> Tensor:
        if self._bias.shape[-1] != n:
            at = torch.arange(n)
            slopes = alibi_slopes(self.encoder.config.num_heads).to(self.encoder.dtype)
            self._bias = (at[None, :] - at[:, None]).abs() * -slopes[None, :, None, None]
        return self._bias


def _norm(norm: Any, x: Tensor) -> Tensor:
    return F.layer_norm(x, norm.weight.shape, norm.weight, norm.bias, norm.eps)


# ---- the oracle -------------------------------------------------------------------------------


def minilm_oracle(folder: Path) -> Texts:
    """The readable dense reference in float64."""
    encoder = pyenc.load(folder, device="cpu", dtype=torch.float64, backend="reference")
    return lambda texts: encoder.encode(texts, max_length=MINILM_MAX_LENGTH, progress=False)


def jina_oracle(encoder: pyenc.Encoder) -> Ids:
    wide = copy.deepcopy(encoder).double()
    wide.backend = "reference"
    return jina_pyenc(wide)


PEERS: dict[str, dict[str, Callable[[Any], Callable[[Any], Any]]]] = {
    "minilm": {
        "pyenc": minilm_pyenc,
        "sentence-transformers": minilm_sentence_transformers,
        "transformers": minilm_transformers,
    },
    "jina": {
        "pyenc": jina_pyenc,
        "torch, SDPA, dense bias": jina_sdpa,
        "torch, eager, dense bias": jina_eager,
        "transformers BertModel, no ALiBi": jina_bert_model,
    },
}
"""By model and name; pyenc is first. Each takes the checkpoint's folder, or the `Encoder`."""

OTHER_FUNCTION = {"transformers BertModel, no ALiBi"}
"""Peers that compute something else: their results are not compared."""
