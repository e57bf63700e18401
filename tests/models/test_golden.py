"""Every golden checkpoint gives its original code's hidden states and pooled vectors.

Tolerance: 1e-5 absolute on the stored float64 values (2e-5 off the main path), which separates
right from wrong in every mutation that was tried; see golden/README.md.
"""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor

from pyenc.loading import Checkpoint, load_checkpoint
from pyenc.models import Encoder
from pyenc.models.packing import pack
from pyenc.ops import segment_mean
from pyenc.text.pooling import pool
from pyenc.text.recipe import read_recipe
from tests.conftest import Golden, read_golden
from tests.oracle import naively

TOLERANCE = {("float32", None): 1e-5, ("float64", "torch"): 1e-5, ("float64", "reference"): 1e-5}


@pytest.fixture(scope="module", params=TOLERANCE, ids=str)
def loaded(request: pytest.FixtureRequest, golden: Golden) -> tuple[Checkpoint, float]:
    dtype, backend = request.param
    checkpoint = load_checkpoint(golden.folder, dtype=dtype, backend=backend, skip_eps=0)
    return checkpoint, TOLERANCE[request.param]


def hidden(encoder: Encoder, golden: Golden, batch: str) -> tuple[Tensor, Tensor]:
    ids, mask, types = golden.inputs(batch)
    with torch.no_grad():
        return encoder(ids, mask, types), mask


def test_all_batches(golden: Golden, loaded: tuple[Checkpoint, float]) -> None:
    checkpoint, tolerance = loaded
    recipe = read_recipe(golden.folder, checkpoint.family.pooling)
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
        pooled = pool(got[mask == 1], packed.cu_seqlens, recipe, backend=checkpoint.encoder.backend)
        expected = golden.expected(batch, "pooled")
        assert expected is not None
        off = (pooled.double() - expected).abs().max()
        assert off <= tolerance, f"{batch}: pooled vectors off by {off:.2g}"
        cosine = torch.cosine_similarity(pooled.double(), expected)
        assert cosine.min() >= 0.99999
    assert compared >= 4


def test_pooler_output(golden: Golden, loaded: tuple[Checkpoint, float]) -> None:
    checkpoint, tolerance = loaded
    expected = golden.expected("ragged", "pooler_output")
    if expected is None:
        assert checkpoint.encoder.pooler is None
        return
    got, _ = hidden(checkpoint.encoder, golden, "ragged")
    off = checkpoint.encoder.pooler_output(got[:, 0]).double() - expected
    assert off.abs().max() <= tolerance


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


def test_a_mutation_is_seen() -> None:
    """The tolerance is no formality: tanh for erf, halves swapped, another eps are all caught."""
    golden = read_golden("jina_geglu_h4")
    checkpoint = load_checkpoint(golden.folder)
    state = checkpoint.encoder.state_dict()
    expected = golden.expected("ragged", "last_hidden_state")
    assert expected is not None
    for change in (
        {"activation": "gelu_tanh"},
        {"gate_first": False},
        {"norm_eps": 1e-5},
    ):
        mutant = Encoder(dataclasses.replace(checkpoint.encoder.config, **change))
        mutant.load_state_dict(state)
        got, mask = hidden(mutant.eval(), golden, "ragged")
        assert (got.double() - expected)[mask == 1].abs().max() > 2e-5, change


def test_mean_and_normalised(golden: Golden) -> None:
    encoder = load_checkpoint(golden.folder).encoder
    recipe = read_recipe(golden.folder)
    if recipe.pooling != "mean":
        pytest.skip(f"pools by {recipe.pooling}")
    got, mask = hidden(encoder, golden, "longmix")
    pooled = segment_mean(
        got[mask == 1], pack(*golden.inputs("longmix")).cu_seqlens, normalize=True
    )
    expected = golden.expected("longmix", "pooled_norm")
    assert expected is not None
    assert (pooled.double() - expected).abs().max() <= 1e-5
