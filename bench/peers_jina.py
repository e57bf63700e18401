"""Jina-small's shape with random weights, from token ids to hidden states, on the CPU.

Each function takes the `Encoder` with those weights and returns what runs: a list of (N,) token
ids, one a text, to (T, C) hidden states, one text after the other. A peer whose library is not
installed raises ImportError.

Shapes: B rows, N padded length, H heads, D head dim, C channels, T tokens of all texts.
"""

from __future__ import annotations

import copy
import itertools
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peers_onnx
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import pyenc
from pyenc.ops import alibi_slopes

Ids = Callable[[list[Tensor]], Tensor]
Padded = Callable[[Tensor, Tensor | None], Tensor]
"""Token ids (B, N) and a mask (B, N), None where all are tokens: to (B, N, C)."""

BATCH = 16
"""Rows at a time where texts differ in length, sorted by it."""


def ours(dtype: torch.dtype) -> Callable[[pyenc.Encoder], Ids]:
    """Packed: no padding is made, so none is computed."""

    def load(encoder: pyenc.Encoder) -> Ids:
        encoder = copy.deepcopy(encoder).to(dtype)

        def run(texts: list[Tensor]) -> Tensor:
            bounds = torch.tensor([0, *itertools.accumulate(map(len, texts))])
            with torch.inference_mode():
                return encoder.forward_packed(torch.cat(texts), bounds)

        return run

    return load


def oracle(encoder: pyenc.Encoder) -> Ids:
    wide = copy.deepcopy(encoder)
    wide.backend = "reference"
    return ours(torch.float64)(wide)


def plain(dtype: torch.dtype, *, eager: bool = False) -> Callable[[pyenc.Encoder], Ids]:
    """torch as one would write it by hand, with a dense bias."""

    def load(encoder: pyenc.Encoder) -> Ids:
        return padded(PlainEncoder(copy.deepcopy(encoder).to(dtype), eager))

    return load


def compiled(dtype: torch.dtype) -> Callable[[pyenc.Encoder], Ids]:
    """The same through torch.compile, the weights frozen into it; compiled for each shape."""

    def load(encoder: pyenc.Encoder) -> Ids:
        import torch._dynamo
        import torch._inductor.config

        torch._inductor.config.freezing = True
        torch._dynamo.config.recompile_limit = 64
        model = PlainEncoder(copy.deepcopy(encoder).to(dtype), eager=False)
        for parameter in model.parameters():
            parameter.requires_grad_(False)
        forward = torch.compile(model.layers, dynamic=False)

        def run(ids_BN: Tensor, mask_BN: Tensor | None) -> Tensor:
            return forward(ids_BN, model.bias(ids_BN.shape[1], mask_BN))

        return padded(run, torch.no_grad)

    return load


def one_by_one(load: Callable[[pyenc.Encoder], Ids]) -> Callable[[pyenc.Encoder], Ids]:
    """Text by text, so that none is padded."""

    def loaded(encoder: pyenc.Encoder) -> Ids:
        run = load(encoder)
        return lambda texts: torch.cat([run([ids]) for ids in texts])

    return loaded


def onnx_runtime(encoder: pyenc.Encoder) -> Ids:
    """The plain encoder with SDPA, exported: the dense bias goes in as it does to torch's SDPA."""
    model = PlainEncoder(copy.deepcopy(encoder), eager=False)
    ids = torch.ones(2, 7, dtype=torch.int64)
    sessions = {}
    with tempfile.TemporaryDirectory() as made, torch.no_grad():
        for masked in (False, True):
            mask = torch.ones(2, 7, dtype=torch.bool) if masked else None
            example = {"ids": ids, "bias": model.bias(7, mask)}
            # One bias for the whole batch, or one a row where padding is masked.
            axes = {"bias": ({0: "batch"} if masked else {}) | {2: "length", 3: "length"}}
            sessions[masked] = peers_onnx.session(Exported(model), example, Path(made), axes)

    def run(ids_BN: Tensor, mask_BN: Tensor | None) -> Tensor:
        bias = model.bias(ids_BN.shape[1], mask_BN)
        return sessions[mask_BN is not None]({"ids": ids_BN, "bias": bias})

    return padded(run)


def bert_model(encoder: pyenc.Encoder) -> Ids:
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

    def run(ids_BN: Tensor, mask_BN: Tensor | None) -> Tensor:
        mask = torch.ones_like(ids_BN) if mask_BN is None else mask_BN.long()
        hidden: Tensor = model(ids_BN, attention_mask=mask)[0]
        return hidden

    return padded(run)


def padded(run: Padded, mode: Callable[[], Any] = torch.inference_mode) -> Ids:
    """In rows: all at once where they are of one length, else sorted by it, a batch at a time."""

    def call(texts: list[Tensor]) -> Tensor:
        with mode():
            if len({len(ids) for ids in texts}) == 1:
                return run(torch.stack(texts), None).flatten(0, 1).float()
            order = sorted(range(len(texts)), key=lambda i: -len(texts[i]))
            found: dict[int, Tensor] = {}
            for start in range(0, len(order), BATCH):
                rows = order[start : start + BATCH]
                batch = [texts[i] for i in rows]
                ids = nn.utils.rnn.pad_sequence(batch, batch_first=True)
                sizes = torch.tensor([len(x) for x in batch])
                hidden = run(ids, torch.arange(ids.shape[1]) < sizes[:, None]).float()
                found |= {i: hidden[row, : len(texts[i])] for row, i in enumerate(rows)}
            return torch.cat([found[i] for i in range(len(texts))])

    return call


class PlainEncoder(nn.Module):
    """The same function with the same weights as its author would write it in plain torch.

    A dense ALiBi bias (1, H, N, N), made once and kept, goes to `scaled_dot_product_attention` or
    to softmax(QK^T + bias) V.
    """

    def __init__(self, encoder: pyenc.Encoder, eager: bool) -> None:
        super().__init__()
        self.encoder = encoder
        self.eager = eager

    def forward(self, ids_BN: Tensor, mask_BN: Tensor | None) -> Tensor:
        return self.layers(ids_BN, self.bias(ids_BN.shape[1], mask_BN))

    def layers(self, ids_BN: Tensor, bias: Tensor) -> Tensor:
        """Under a bias that can be added to (B, H, N, N) scores."""
        e = self.encoder.embeddings
        assert e.token_type is not None
        x_BNC = _norm(e.norm, e.word(ids_BN) + e.token_type.weight[0])
        for layer in self.encoder.layers:
            x_BNC = _norm(
                layer.attention_norm, x_BNC + self.attention(layer.attention, x_BNC, bias)
            )
            gate, value = _linear(layer.feed_forward.up, x_BNC).chunk(2, dim=-1)
            forward = _linear(layer.feed_forward.down, F.gelu(gate) * value)
            x_BNC = _norm(layer.feed_forward_norm, x_BNC + forward)
        return x_BNC

    def attention(self, module: Any, x_BNC: Tensor, bias: Tensor) -> Tensor:
        qkv = _linear(module.qkv, x_BNC).unflatten(-1, (3, *module.heads)).permute(2, 0, 3, 1, 4)
        q_BHND, k_BHND, v_BHND = qkv
        if self.eager:
            score = q_BHND @ k_BHND.transpose(-1, -2) * q_BHND.shape[-1] ** -0.5 + bias
            out_BHND = score.softmax(-1) @ v_BHND
        else:
            out_BHND = F.scaled_dot_product_attention(q_BHND, k_BHND, v_BHND, attn_mask=bias)
        out: Tensor = _linear(module.out, out_BHND.transpose(1, 2).flatten(2))
        return out

    def bias(self, n: int, mask_BN: Tensor | None) -> Tensor:
        """(1, H, N, N), kept until another length comes; (B, H, N, N) where padding is masked."""
        bias = kept_alibi(n, self.encoder.config.num_heads, self.encoder.dtype)
        return bias if mask_BN is None else bias.masked_fill(~mask_BN[:, None, None], -torch.inf)


class Exported(nn.Module):
    """The plain encoder's layers, as a module that can be exported."""

    def __init__(self, plain: PlainEncoder) -> None:
        super().__init__()
        self.plain = plain

    def forward(self, ids: Tensor, bias: Tensor) -> Tensor:
        return self.plain.layers(ids, bias)


def dense_alibi(n: int, heads: int) -> Tensor:
    """(1, H, N, N) float32."""
    at = torch.arange(n)
    distance = (at[None, :] - at[:, None]).abs().float()
    return distance * -alibi_slopes(heads)[None, :, None, None]


_KEPT: dict[torch.dtype, Tensor] = {}


def kept_alibi(n: int, heads: int, dtype: torch.dtype) -> Tensor:
    """One for all peers of a dtype: at 8,192 tokens one of each peer's own would not fit."""
    kept = _KEPT.get(dtype)
    if kept is None or kept.shape[1:3] != (heads, n):
        _KEPT.pop(dtype, None)
        kept = _KEPT[dtype] = dense_alibi(n, heads).to(dtype)
    return kept


def _linear(layer: Any, x: Tensor) -> Tensor:
    return F.linear(x, layer.weight, layer.bias)


def _norm(norm: Any, x: Tensor) -> Tensor:
    return F.layer_norm(x, norm.weight.shape, norm.weight, norm.bias, norm.eps)
