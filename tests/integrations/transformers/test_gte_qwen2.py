"""Encoders as gte-Qwen2's, whose layers see both sides: against transformers' own class, and
against the written-out formula in float64."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pyenc.loading import load_checkpoint
from tests.integrations.transformers.language_models import batch, check_same, random_model, saved
from tests.seeds import seed

CODE = {
    "AutoModel": "modeling_qwen.Qwen2Model",
    "AutoModelForCausalLM": "modeling_qwen.Qwen2ForCausalLM",
    "AutoModelForSequenceClassification": "modeling_qwen.Qwen2ForSequenceClassification",
}
OFF = {"use_sliding_window": False, "sliding_window": 3, "max_window_layers": 1}
"""Window fields as published, which nobody reads."""


def gte(folder: Path, causal: bool = False, **sizes: Any) -> tuple[Any, Path]:
    model = random_model("Qwen2", is_causal=causal, **(OFF | sizes))
    return model, saved(model, folder, auto_map=CODE, is_causal=causal)


def odd(number: int) -> dict[str, Any]:
    """Sizes at random, most of them no multiple of anything."""
    some = random.Random(f"{seed(number)} gte")
    kept, head = some.randint(1, 3), 2 * some.randint(9, 37)
    heads = kept * some.randint(1, 4)
    return {
        "vocab_size": some.randint(9, 300), "num_hidden_layers": some.randint(1, 4),
        "num_attention_heads": heads, "num_key_value_heads": kept, "hidden_size": heads * head,
        "intermediate_size": some.randint(5, 90), "tie_word_embeddings": some.random() < 0.5,
        "rope_parameters": {"rope_theta": some.choice([50.0, 1e4, 1e6]), "rope_type": "default"},
        "rms_norm_eps": some.choice([1e-6, 1e-3]),
    }  # fmt: skip


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("number", range(6))
def test_as_transformers_class(number: int, causal: bool, tmp_path: Path) -> None:
    """Which goes by `is_causal` in config.json and, without remote code, not by `auto_map`."""
    model, folder = gte(tmp_path, causal, **odd(number))
    assert load_checkpoint(folder).encoder.config.causal == causal
    check_same(model, folder)
    again = type(model).from_pretrained(folder, attn_implementation="sdpa").eval()
    check_same(again, folder)


@pytest.mark.parametrize("backend", [None, "torch", "reference"])
@pytest.mark.parametrize("number", range(4))
@torch.no_grad()
def test_as_the_formula(number: int, backend: str | None, tmp_path: Path) -> None:
    sizes = odd(number + 100)
    model, folder = gte(tmp_path, **sizes)
    encoder = load_checkpoint(folder, dtype="float64", backend=backend, skip_eps=0).encoder
    ids, mask = batch(sizes["vocab_size"])
    got = encoder(ids, mask)
    assert not got[mask == 0].any()
    for row, kept in zip(range(len(ids)), mask == 1, strict=True):
        right = formula(model, ids[row][kept], kept.nonzero()[:, 0])
        off = (got[row][kept] - right).abs().max()
        assert off <= 1e-9 * max(1.0, float(right.abs().max())), off


def formula(model: Any, ids: Tensor, places: Tensor) -> Tensor:
    """One text's hidden states, (T,) -> (T, C), head by head in float64: every token sees every
    other. Places in the padded row, (T,), of which only the distances count."""
    said = model.config
    weights = {name: tensor.double() for name, tensor in model.model.state_dict().items()}
    heads, kept = said.num_attention_heads, said.num_key_value_heads
    wide = said.hidden_size // heads

    def norm(x: Tensor, name: str) -> Tensor:
        scale = (x.square().mean(-1, keepdim=True) + said.rms_norm_eps).rsqrt()
        return x * scale * weights[f"{name}.weight"]

    # Tables of float32, as in the original code.
    rates = 1.0 / said.rope_parameters["rope_theta"] ** (torch.arange(0, wide, 2).float() / wide)
    angles = places.float()[:, None] * rates
    cos, sin = angles.cos().double(), angles.sin().double()

    def turned(x: Tensor) -> Tensor:
        low, high = x.chunk(2, -1)
        return torch.cat([low * cos - high * sin, high * cos + low * sin], -1)

    act = torch.nn.functional.silu
    x = weights["embed_tokens.weight"][ids]
    for i in range(said.num_hidden_layers):
        layer = f"layers.{i}"
        y = norm(x, f"{layer}.input_layernorm")
        q, k, v = (
            y @ weights[f"{layer}.self_attn.{z}_proj.weight"].T
            + weights[f"{layer}.self_attn.{z}_proj.bias"]
            for z in "qkv"
        )
        found = []
        for h in range(heads):
            own, shared = h * wide, h // (heads // kept) * wide
            query, key = turned(q[:, own : own + wide]), turned(k[:, shared : shared + wide])
            share = torch.softmax(query @ key.T * wide**-0.5, -1)
            found.append(share @ v[:, shared : shared + wide])
        x = x + torch.cat(found, -1) @ weights[f"{layer}.self_attn.o_proj.weight"].T
        y = norm(x, f"{layer}.post_attention_layernorm")
        gate, up = (y @ weights[f"{layer}.mlp.{z}_proj.weight"].T for z in ("gate", "up"))
        x = x + (act(gate) * up) @ weights[f"{layer}.mlp.down_proj.weight"].T
    return norm(x, "norm")
