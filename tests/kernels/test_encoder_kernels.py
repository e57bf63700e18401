"""Whole encoders through the Triton kernels give what the families' original code gave."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

from pyenc.loading import load_checkpoint
from pyenc.models.packing import pack
from pyenc.text.pooling import pool
from pyenc.text.recipe import read_recipe
from pyenc_kernels import embedding
from tests.conftest import CHECKPOINTS, read_golden

# Real weights are as slow here as they are large, and the kernels they need are those of others.
NAMES = [name for name in CHECKPOINTS if not name.endswith("_real")]


@pytest.mark.parametrize("name", NAMES)
def test_golden(name: str, device: str) -> None:
    golden = read_golden(name)
    checkpoint = load_checkpoint(golden.folder, backend="triton", skip_eps=0)
    encoder = checkpoint.encoder.to(device)
    recipe = read_recipe(golden.folder, checkpoint.pooling)
    ids, mask, types = (None if x is None else x.to(device) for x in golden.inputs("ragged"))
    assert ids is not None
    assert mask is not None
    with torch.no_grad():
        got = encoder(ids, mask, types)
        packed = pack(ids, mask, types)
        skipped = golden.skipped("ragged")
        pooled = pool(
            got[mask == 1],
            packed.cu_seqlens,
            recipe,
            skip_tokens=skipped.to(device) if isinstance(skipped, torch.Tensor) else skipped,
            backend="triton",
        )
    for found, what in ((got, "last_hidden_state"), (pooled, "pooled")):
        expected = golden.expected("ragged", what)
        if expected is not None:
            off = (found.cpu().double() - expected).abs()
            if what == "last_hidden_state":
                off = off[mask.cpu() == 1]
            assert off.max() <= 1e-5, what


@pytest.mark.parametrize("name", NAMES)
def test_embeddings_are_one_kernel_with_the_bits_of_many(
    name: str, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where no gradient is wanted, and the family has a norm there."""
    launched: list[int] = []
    real = embedding.forward

    def counting(*given: Any) -> Tensor:
        launched.append(1)
        return real(*given)

    monkeypatch.setattr(embedding, "forward", counting)
    golden = read_golden(name)
    encoder = load_checkpoint(golden.folder, backend="triton", skip_eps=0).encoder.to(device)
    monkeypatch.setattr(encoder, "layers", torch.nn.ModuleList())
    monkeypatch.setattr(encoder, "config", replace(encoder.config, layer_order=()))
    ids, mask, types = (None if x is None else x.to(device) for x in golden.inputs("ragged"))
    assert ids is not None
    packed = pack(ids, mask, types, encoder.config.padding_id)
    states: list[Tensor] = []
    encoder.hidden(packed, states)
    assert not launched
    with torch.inference_mode():
        encoder.hidden(packed, states)
    assert launched == [1] * encoder.config.embedding_norm
    first, second = states[0], states[len(states) // 2]
    assert torch.equal(first, second)
