"""Every golden checkpoint gives its original code's hidden states and pooled vectors.

Tolerance: 1e-5 absolute on the stored float64 values (2e-5 off the main path), which separates
right from wrong in every mutation that was tried; see golden/README.md.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from pyenc.loading import Checkpoint, load_checkpoint
from pyenc.models import Convolution, Disentangled, Encoder
from pyenc.models.packing import pack
from pyenc.models.rotary import Rotary
from pyenc.ops import segment_mean
from pyenc.text.pooling import pool
from pyenc.text.recipe import read_recipe
from tests.conftest import CHECKPOINTS, GOLDEN, Golden, read_golden
from tests.oracle import naively

TOLERANCE = {("float32", None): 1e-5, ("float64", "torch"): 1e-5, ("float64", "reference"): 1e-5}


@pytest.fixture(scope="module", params=TOLERANCE, ids=str)
def loaded(request: pytest.FixtureRequest, golden: Golden) -> tuple[Checkpoint, float]:
    dtype, backend = request.param
    checkpoint = load_checkpoint(golden.folder, dtype=dtype, backend=backend, skip_eps=0)
    return checkpoint, TOLERANCE[request.param]


def stored(name: str) -> frozenset[str]:
    """The names of what the original code gave."""
    with safe_open(GOLDEN / name / "io.safetensors", framework="pt") as file:
        return frozenset(file.keys())


def hidden(encoder: Encoder, golden: Golden, batch: str) -> tuple[Tensor, Tensor]:
    ids, mask, types = golden.inputs(batch)
    with torch.no_grad():
        return encoder(ids, mask, types), mask


def test_all_batches(golden: Golden, loaded: tuple[Checkpoint, float]) -> None:
    checkpoint, tolerance = loaded
    recipe = read_recipe(golden.folder, checkpoint.pooling)
    compared = 0
    for batch in golden.batches:
        got, mask = hidden(checkpoint.encoder, golden, batch)
        assert not got[mask == 0].any(), f"{batch}: padding must come back as zeros"
        expected = golden.expected(batch, "last_hidden_state")
        if expected is not None:
            off = (got.double() - expected)[mask == 1].abs().max()
            assert off <= tolerance, f"{batch}: hidden states off by {off:.2g}"
            compared += 1
        packed = pack(*golden.inputs(batch))
        pooled = pool(
            got[mask == 1],
            packed.cu_seqlens,
            recipe,
            skip_tokens=golden.skipped(batch),
            backend=checkpoint.encoder.backend,
        )
        # Where the original lets a text's neighbours change it, each text is taken alone.
        expected = golden.expected(batch, "pooled_alone")
        expected = golden.expected(batch, "pooled") if expected is None else expected
        assert expected is not None
        off = (pooled.double() - expected).abs().max()
        assert off <= tolerance, f"{batch}: pooled vectors off by {off:.2g}"
        cosine = torch.cosine_similarity(pooled.double(), expected)
        assert cosine.min() >= 0.99999
    assert compared >= 4


@pytest.mark.parametrize("setting", TOLERANCE, ids=str)
@pytest.mark.parametrize("name", [n for n in CHECKPOINTS if "ragged.pooler_output" in stored(n)])
def test_pooler_output(name: str, setting: tuple[str, str | None]) -> None:
    golden = read_golden(name)
    encoder = load_checkpoint(golden.folder, dtype=setting[0], backend=setting[1]).encoder
    expected = golden.expected("ragged", "pooler_output")
    assert expected is not None
    got, _ = hidden(encoder, golden, "ragged")
    off = encoder.pooler_output(got[:, 0]).double() - expected
    assert off.abs().max() <= TOLERANCE[setting]


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_stays_near(golden: Golden, dtype: str) -> None:
    """At most twice as far from the truth as the dense computation in that dtype."""
    off = {}
    for backend in (None, "reference"):
        encoder = load_checkpoint(golden.folder, dtype=dtype, backend=backend).encoder
        with naively():
            got, mask = hidden(encoder, golden, "ragged")
        assert got.dtype == getattr(torch, dtype)
        expected = golden.expected("ragged", "last_hidden_state")
        assert expected is not None
        off[backend] = (got.double() - expected)[mask == 1].abs().max().item()
    assert off[None] <= 2 * off["reference"]


ROTARY = Rotary(500_000.0)
MUTATIONS: dict[str, list[dict[str, Any]]] = {
    "albert_mlm_like_h2": [
        {"layer_order": (0, 1, 2, 3)},
        {"layer_order": (0, 1) * 2 + (2, 3) * 3},
        {"layer_order": (0, 0, 0, 1, 1, 1, 2, 2, 3, 3)},
        {"layer_order": (0, 1) * 3 + (3, 2) * 2},
        {"activation": "gelu_tanh"},
    ],
    "albert_small_like_h4": [
        {"layer_order": (0,) * 4},
        {"layer_order": (0,) * 6},
        {"activation": "gelu"},
        {"norm_eps": 1e-3},
    ],
    "dpr_ctx_like_h4": [{"activation": "gelu_tanh"}, {"norm_eps": 1e-3}],
    "deberta_own_mlm_h4": [
        {"scale": 16**-0.5},
        {"activation": "gelu"},
        {"norm_eps": 1e-3},
    ],
    "deberta_rerank_like_h2": [
        {"disentangled": Disentangled(32, 32, 65, norm=True)},
        {"disentangled": Disentangled(32, norm=True)},
        {"disentangled": Disentangled(32, 32, 64, norm=True, content_to_position=False)},
        {"disentangled": Disentangled(32, 32, 64, norm=True, position_to_content=False)},
        {"norm_eps": 1e-3},
    ],
    "deberta_v2_conv_like_h4": [
        {"convolution": Convolution(3, activation="tanh")},
        {"norm_eps": 1e-3},
    ],
    "deberta_v3_like_h4": [
        {"disentangled": Disentangled(16, 16, 63, norm=True)},
        {"disentangled": Disentangled(16, norm=True)},
        {"scale": 16**-0.5},
        {"activation": "gelu_tanh"},
    ],
    "electra_base_like_h2": [{"activation": "gelu_tanh"}, {"norm_eps": 1e-3}],
    "electra_small_like_h4": [{"activation": "gelu_tanh"}, {"norm_eps": 1e-3}, {"scale": 1.0}],
    "jina_geglu_h4": [{"activation": "gelu_tanh"}, {"gate_first": False}, {"norm_eps": 1e-5}],
    "gte_base_like_h4": [{"rotary": ROTARY}, {"gate_first": True}, {"log_length": 64}],
    "modernbert_mmbert_like_h3": [
        {"window": 11},
        {"window": 13},
        {"local": (), "window": None, "local_rotary": None},
        {"gate_first": False},
        {"norm_eps": 1e-12},
    ],
    "gemma1_like_h2": [
        {"causal": False},
        {"rotary": Rotary(20_000.0)},
        {"scale": 1.0},
        {"embedding_scale": None},
        {"norm_plus_one": False},
        {"activation": "gelu"},
        {"gate_first": False},
        {"norm_eps": 1e-4},
    ],
    "gemma2_bge_like_h4": [
        {"score_cap": None},
        {"score_cap": 1.6},
        {"window": 23},
        {"window": 25},
        {"local": (False, True) * 2},
        {"causal": False},
        {"rotary": Rotary(20_000.0)},
        {"scale": None},
        {"embedding_scale": None},
        {"norm_plus_one": False},
        {"activation": "gelu"},
    ],
    "gemma_embed_like_h3": [
        {"window": 11},
        {"window": 13},
        {"local": (), "window": None, "local_rotary": None},
        {"rotary": Rotary(500.0)},
        {"local_rotary": None},
        {"scale": None},
        {"embedding_scale": None},
        {"embedding_scale": 7.0},
        {"norm_plus_one": False},
        {"gate_first": False},
        {"activation": "gelu"},
        {"norm_eps": 1e-5},
    ],
    "eurobert_like_h4": [
        {"rotary": Rotary(10_000.0)},
        {"scale": 1.0},
        {"norm": "layer", "norm_bias": False},
        {"norm_eps": 1e-6},
        {"activation": "gelu"},
        {"gate_first": False},
    ],
    "llama_encoder_like_h6": [
        {"causal": False},
        {"local": (True,) * 3, "window": 23},
        {"rotary": Rotary(10_000.0)},
        {"scale": 1.0},
        {"norm_eps": 1e-6},
        {"activation": "gelu"},
        {"gate_first": False},
    ],
    "longformer_like_h4": [
        {"window": 5},
        {"window": 7},
        {"local": (), "window": None},
        {"padding_id": None},
        {"norm_eps": 1e-3},
    ],
    "mistral_e5_like_h4": [
        {"causal": False},
        {"local": (), "window": None, "local_rotary": None},
        {"window": 10},
        {"window": 12},
        {"rotary": Rotary(20_000.0)},
        {"scale": 1.0},
        {"norm_eps": 1e-6},
        {"activation": "gelu"},
        {"gate_first": False},
    ],
    "qwen2_code_like_h6": [
        {"causal": False},
        {"rotary": Rotary(10_000.0)},
        {"scale": 1.0},
        {"norm_eps": 1e-5},
        {"activation": "gelu"},
        {"gate_first": False},
    ],
    "qwen2_gte_like_h4": [
        {"causal": True},
        {"rotary": Rotary(10_000.0)},
        {"scale": 1.0},
        {"norm_eps": 1e-5},
        {"activation": "gelu"},
        {"gate_first": False},
    ],
    "qwen3_embed_like_h4": [
        {"causal": False},
        {"local": (True,) * 3, "window": 23},
        {"rotary": Rotary(10_000.0)},
        {"scale": 48**-0.5},
        {"norm_eps": 1e-5},
        {"activation": "gelu"},
        {"gate_first": False},
        {"norm_plus_one": True},
    ],
    "jinav3_hf_like_h4": [
        {"rotary": Rotary(10_000.0)},
        {"activation": "gelu_tanh"},
        {"norm_eps": 1e-12},
    ],
    "modernbert_embed_like_h2": [{"local_rotary": None}, {"activation": "gelu_tanh"}],
    "neobert_like_h4": [
        {"rotary": Rotary(20_000.0)},
        {"norm": "layer", "norm_bias": False},
        {"norm_eps": 1e-3},
        {"activation": "gelu"},
        {"gate_first": False},
        {"scale": 1.0},
    ],
    "nomic_ntk_h3": [
        {"rotary": Rotary(1000.0)},
        {"rotary": Rotary(1000.0, dynamic_factor=1.0, trained_length=96)},
        {"activation": "gelu"},
        {"norm_eps": 1e-5},
    ],
    "mpnet_base_v2_like_h4": [
        {"padding_id": None},
        {"relative_max_distance": 64},
        {"norm_eps": 1e-12},
    ],
    "xlmr_bge_m3_like_h4": [{"padding_id": None}, {"norm_eps": 1e-12}],
    "t5_instructor_gated_h6": [
        {"scale": None},
        {"activation": "gelu"},
        {"gate_first": False},
        {"relative_max_distance": 64},
        {"norm_eps": 1e-5},
    ],
}


@pytest.mark.parametrize("name", MUTATIONS)
def test_a_mutation_is_seen(name: str) -> None:
    """The tolerance is no formality: what a port is likely to get wrong is caught by a batch."""
    golden = read_golden(name)
    checkpoint = load_checkpoint(golden.folder)
    state = checkpoint.encoder.state_dict()
    for change in MUTATIONS[name]:
        mutant = Encoder(dataclasses.replace(checkpoint.encoder.config, **change))
        mutant.load_state_dict(state)
        mutant.eval()
        off = 0.0
        for batch in golden.batches:
            expected = golden.expected(batch, "last_hidden_state")
            if expected is not None:
                got, mask = hidden(mutant, golden, batch)
                off = max(off, float((got.double() - expected)[mask == 1].abs().max()))
        assert off > 2e-5, change


def test_mean_and_normalised(golden: Golden) -> None:
    checkpoint = load_checkpoint(golden.folder)
    encoder, recipe = checkpoint.encoder, read_recipe(golden.folder, checkpoint.pooling)
    if recipe.pooling != "mean" or recipe.dense or "longmix.pooled_alone" in golden.io:
        pytest.skip("its vector is not the plain mean of these states")
    got, mask = hidden(encoder, golden, "longmix")
    kept = golden.io.get("longmix.pool_mask", mask)
    cu_seqlens = pack(*golden.inputs("longmix")).cu_seqlens
    pooled = segment_mean(got[mask == 1], cu_seqlens, kept[mask == 1].float(), normalize=True)
    expected = golden.expected("longmix", "pooled_norm")
    assert expected is not None
    assert (pooled.double() - expected).abs().max() <= 1e-5
