"""What is run: the cases, their texts and token ids, and how much arithmetic they take."""

from __future__ import annotations

import operator
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

import pyenc

LICENSE = Path(__file__).resolve().parents[1] / "LICENSE"


@dataclass(frozen=True)
class Case:
    """One model on texts of given lengths."""

    model: str
    """A name of `bench.subjects.SUBJECTS`."""
    name: str
    lengths: tuple[int, ...]
    """Tokens of each text, special tokens included."""

    @property
    def tokens(self) -> int:
        return sum(self.lengths)


ONE_TEXT = ("minilm", "jina", "mpnet", "gte-base", "deberta", "gemma", "modernbert", "qwen3")


def cases(quick: bool) -> list[Case]:
    """All cases; `quick` keeps the lengths and takes fewer texts, and leaves out the longest."""
    few = 8 if quick else 1

    def ragged(shortest: int) -> tuple[int, ...]:
        return mixed(shortest, 64, few)

    listed = [
        *(Case(model, "one of 16", (16,)) for model in ONE_TEXT),
        Case("minilm", "128", (128,) * (64 // few)),
        Case("minilm", "512", (512,) * (16 // few)),
        Case("minilm", "16 to 512", ragged(16)),
        Case("jina", "512", (512,) * (8 // few)),
        Case("jina", "20 to 512", ragged(20)),
        Case("jina", "2,048", (2048,) * (1 if quick else 2)),
        Case("mpnet", "128", (128,) * (16 // few)),
        Case("mpnet", "512", (512,) * max(1, 4 // few)),
        Case("mpnet", "16 to 512", ragged(16)),
        Case("gte-base", "128", (128,) * (16 // few)),
        Case("gte-base", "512", (512,) * max(1, 4 // few)),
        Case("gte-base", "16 to 512", ragged(16)),
        Case("deberta", "128", (128,) * (16 // few)),
        Case("deberta", "512", (512,) * max(1, 4 // few)),
        Case("deberta", "16 to 512", ragged(16)),
        Case("gemma", "128", (128,) * (16 // few)),
        Case("gemma", "512", (512,) * max(1, 4 // few)),
        Case("gemma", "16 to 512", ragged(16)),
        Case("modernbert", "128", (128,) * (16 // few)),
        Case("modernbert", "512", (512,) * max(1, 4 // few)),
        Case("modernbert", "16 to 512", ragged(16)),
        Case("longformer", "512", (512,) * max(1, 4 // few)),
        Case("longformer", "16 to 512", ragged(16)),
        Case("qwen3", "128", (128,) * (8 // few)),
        Case("qwen3", "512", (512,) * max(1, 2 // few)),
        Case("qwen3", "16 to 512", mixed(16, 16, few)),
        Case("bge-m3", "128", (128,) * (8 // few)),
        Case("bge-m3", "512", (512,) * max(1, 2 // few)),
        Case("bge-m3", "16 to 512", ragged(16)),
    ]
    long = ("jina", "gte-base", "bge-m3", "modernbert")
    far = [Case(model, "8,192", (8192,)) for model in long]
    far += [Case("gemma", "2,048", (2048,)), Case("longformer", "4,096", (4096,))]
    return listed if quick else [*listed, *far]


def card_cases(quick: bool) -> list[Case]:
    """Those on a GPU, larger by what one does at a time; `quick` as above."""
    few = 8 if quick else 1
    listed = [
        Case("jina-base", "512", (512,) * (64 // few)),
        Case("jina-base", "2,048", (2048,) * (16 // few)),
        Case("jina-base", "16 to 512", mixed(16, 256, few)),
        Case("bert-base", "512", (512,) * (256 // few)),
        Case("bert-base", "16 to 512", mixed(16, 1024, few)),
    ]
    return listed if quick else [Case("jina-base", "8,192", (8192,) * 4), *listed]


def mixed(shortest: int, count: int, every: int = 1) -> tuple[int, ...]:
    """Lengths of up to 512 tokens, log-uniform, in no order; of `count`, one in `every`."""
    steps = range(0, count, every)
    spread = [round(shortest * (512 / shortest) ** (i / (count - 1))) for i in steps]
    random.Random(0).shuffle(spread)
    return tuple(spread)


def texts_of(lengths: Sequence[int], encoder: pyenc.TextEncoder) -> list[str]:
    """Texts of exactly these many tokens: words of the Apache licence in a fixed random order.

    Words parted by spaces are tokenised apart from each other, so their tokens add up.
    """
    words = sorted(set(LICENSE.read_text("utf-8").split()))
    sizes = {
        word: len(tokens.ids) - 2
        for word, tokens in zip(words, encoder.tokenizer(words, 512), strict=True)
    }
    draw = random.Random(0)
    texts = []
    for length in lengths:
        room, text = length - 2, []
        while room > 0:
            word = draw.choice(words)
            if 0 < sizes[word] <= room:
                text.append(word)
                room -= sizes[word]
        texts.append(" ".join(text))
    found = tuple(len(tokens.ids) for tokens in encoder.tokenizer(texts, 10**6))
    assert found == tuple(lengths), "the tokenizer does not take words apart"
    return texts


def token_ids(lengths: Sequence[int], vocab_size: int) -> list[Tensor]:
    """Random ids, one (N,) a text."""
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(vocab_size, (length,), generator=generator) for length in lengths]


def gflop(config: pyenc.EncoderConfig, lengths: Sequence[int]) -> float:
    """Arithmetic of the matrix products: 2 a linear weight and token, 4 n^2 C a layer and text; of
    disentangled attention the products with each text's rows of distances too."""
    width, heads = config.hidden_size, config.num_heads * config.head_dim
    kept = config.kv_heads * config.head_dim
    forward = (3 if config.gated else 2) * width * config.intermediate_size
    weights = 0
    for i in config.layer_order or range(config.num_layers):
        mixed = config.experts if config.experts and config.experts.layers[i] else None
        weights += 2 * width * (heads + kept)
        weights += forward if mixed is None else mixed.each * forward + mixed.count * width
    attention = 4 * config.depth * heads * sum(n * n for n in lengths)
    if (kind := config.disentangled) is not None:
        rows = [kind.rows.within(n - 1).count for n in lengths]
        attention += 2 * kind.terms * config.depth * heads * sum(map(operator.mul, rows, lengths))
        attention += 2 * kind.terms * config.depth * heads * width * max(rows)
    return (2 * weights * sum(lengths) + attention) / 1e9
