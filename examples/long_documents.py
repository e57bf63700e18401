"""Part two of the demo: whole modules of Python's documentation, searched with long-minilm.

A module's docstrings are one text, of thousands of tokens. One pass gives its vector and its
passages' at once: a passage's is the mean of its tokens' states, made with the whole module in
view ("late chunking", Günther et al., arXiv 2409.04701).
"""

from __future__ import annotations

import re
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

import pyenc
from examples.distillation import readers
from pyenc.ops import ALiBi, alibi_slopes, computed_share

MODULES = 12
LONGEST = 8192
"""Tokens of a module that are read."""
PASSAGE = 100
"""Tokens of a passage at the least, but for a module's last one."""
DENSE_TOKENS = 4096
"""Of the text that is compared with the dense bias."""

QUERIES = (
    "fill the shape that was drawn with a colour",
    "which addresses are reserved for private networks",
    "show the differences of two texts side by side as an HTML table",
    "compute the slope and intercept of a line through data points",
    "send log records to a file that is rotated when it is full",
    "replace entries of a dictionary for the duration of a test",
    "ask for the signature of a callable object",
    "move an item of a tree widget to another place",
)


class Passage(NamedTuple):
    module: int
    token: int
    """Where it begins, in tokens of its module."""
    text: str


class Read(NamedTuple):
    """Modules after one pass."""

    modules: np.ndarray  # (M, C), of unit length
    passages: np.ndarray  # (P, C), of unit length
    places: list[Passage]
    tokens: list[int]


class Dense(NamedTuple):
    """One text with the bias by distance and with the dense one."""

    tokens: int
    seconds: tuple[float, float]
    """Without what the dense biases take to make."""
    bytes: int
    """Of the dense bias of a layer."""
    share: float
    """Of attention's arithmetic that was done, the mean of the layers."""
    apart: float
    """The largest difference of the hidden states."""


def whole_modules(
    sources: Sequence[tuple[str, Path]], tokenizer: Any, count: int = MODULES
) -> list[tuple[str, str]]:
    """(name, docstrings) of the modules that have most of them, by the names."""
    found = []
    for name, path in sources:
        try:
            text = readers.docstrings(path)
        except (OSError, SyntaxError, ValueError):
            continue
        found.append((len(text), name, text))
    longest = sorted(found, key=lambda each: (-each[0], each[1]))[: 2 * count]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", pyenc.LongWordWarning)
        lengths = [t.full_length for t in tokenizer([text for *_, text in longest], LONGEST)]
    order = sorted(range(len(longest)), key=lambda i: -lengths[i])[:count]
    return sorted((longest[i][1], longest[i][2]) for i in order)


def read(encoder: pyenc.TextEncoder, texts: Sequence[str]) -> Read:
    """Vectors of texts and of their passages, each token computed once."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", pyenc.TruncationWarning)
        states = encoder.encode(texts, output="tokens", max_length=LONGEST)
    modules, passages, places = [], [], []
    for number, (text, (vectors, spans)) in enumerate(zip(texts, states, strict=True)):
        modules.append(vectors.mean(0))
        for first, last in passages_of(text, spans):
            passages.append(vectors[first:last].mean(0))
            piece = text[spans[first, 0] : spans[last - 1, 1]]
            places.append(Passage(number, first, piece))
    return Read(unit(modules), unit(passages), places, [len(s.vectors) for s in states])


def passages_of(text: str, spans: np.ndarray) -> list[tuple[int, int]]:
    """Paragraphs, taken together until they have `PASSAGE` tokens: (first, last + 1) in tokens."""
    breaks = [match.end() for match in re.finditer(r"\n\s*\n", text)]
    # A token is a paragraph's first where it begins behind a break that the one before did not.
    begins = np.searchsorted(np.asarray(breaks), spans[:, 0], "right")
    inner = range(1, len(spans) - 1)  # without [CLS] and [SEP]
    pieces: list[tuple[int, int]] = []
    first = 1
    for token in inner:
        if begins[token] != begins[token - 1] and token - first >= PASSAGE:
            pieces.append((first, token))
            first = token
    return [*pieces, (first, len(spans) - 1)] if len(spans) - 1 > first else pieces


def unit(vectors: Sequence[np.ndarray]) -> np.ndarray:
    rows = np.stack(vectors)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def nearest(query: np.ndarray, seen: Read) -> tuple[Passage, float]:
    """The passage that is nearest to a query (C,) of unit length, and its cosine."""
    scores = seen.passages @ query
    best = int(scores.argmax())
    return seen.places[best], float(scores[best])


def rank(query: np.ndarray, vectors: np.ndarray, index: int) -> int:
    """The place of one of the vectors among all, from 1, by cosine."""
    scores = vectors @ query
    return int((scores > scores[index]).sum()) + 1


@torch.inference_mode()
def beside_dense(model: pyenc.Encoder, ids: Tensor) -> Dense:
    """The same layers with their biases as tensors of (heads, n, n), added by torch's SDPA.

    Args:
        model: post-norm, of position "alibi" or of a bias by distance in each layer, on the CPU.
        ids: (n,).
    """
    n, bounds = len(ids), torch.tensor([0, len(ids)])
    start = time.perf_counter()
    ours_TC = model.forward_packed(ids, bounds)
    took = time.perf_counter() - start
    alibi = ALiBi(alibi_slopes(model.config.num_heads))
    shares: list[float] = []
    start, aside, size = time.perf_counter(), 0.0, 0
    x_TC = model.embeddings(ids, None, None, None)
    for layer in model.layers:
        own: Any = layer
        parts = own.attention.qkv(x_TC, None).chunk(3, dim=-1)
        qkv = [part.unflatten(-1, own.attention.heads) for part in parts]
        paused = time.perf_counter()
        bias = own.attention.position_bias or alibi
        shares.append(computed_share(*qkv, bounds, bias=bias))
        bias_HNN = dense_bias(bias, n)
        size = bias_HNN.nbytes
        aside += time.perf_counter() - paused
        q, k, v = (part.transpose(0, 1)[None] for part in qkv)
        a_HND = F.scaled_dot_product_attention(q, k, v, attn_mask=bias_HNN[None])[0]
        a_TC = own.attention.out(a_HND.transpose(0, 1).flatten(1), None)
        h_TC, _ = own.attention_norm(a_TC, x_TC, None)
        x_TC, _ = own.feed_forward_norm(own.feed_forward(h_TC, None), h_TC, None)
    dense = time.perf_counter() - start - aside
    apart = float((x_TC - ours_TC).abs().max())
    share = sum(shares) / len(shares)
    return Dense(n, (took, dense), size, share, apart)


def dense_bias(bias: Any, n: int) -> Tensor:
    """(H, n, n) of a bias by distance."""
    offsets = torch.arange(1 - n, n)
    if isinstance(bias, ALiBi):
        line_HN = -bias.slopes[:, None] * offsets.abs()
    else:
        line_HN = bias.along(offsets)
    # Each row is the line from another place on.
    return line_HN.unfold(1, n, 1).flip(1).contiguous()
