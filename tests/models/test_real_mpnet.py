"""The real all-mpnet-base-v2, where its packages are installed, gives its original code's vectors.

tests/golden/mpnet_real holds sentence-transformers' vectors of 21 texts, one of them longer than
the limit, so that every bucket of the relative positions is used.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import pyenc
from pyenc.ops import masked_mean_pool
from tests.conftest import GOLDEN

FOLDER = GOLDEN / "mpnet_real"


@pytest.mark.slow
def test_the_real_mpnet(mpnet: Path) -> None:
    io = load_file(FOLDER / "io.safetensors")
    texts = json.loads((FOLDER / "texts.json").read_text("utf-8"))
    encoder = pyenc.load(mpnet)
    with pytest.warns(pyenc.TruncationWarning, match="1 of 21 texts exceed 384 tokens"):
        got = encoder.encode(texts)
    expected = io["embeddings_f64"].numpy()
    assert np.abs(got - expected).max() <= 1e-5
    assert (got * expected).sum(1).min() >= 0.99999
    ids, mask = io["input_ids"].long(), io["attention_mask"].long()
    with torch.no_grad():
        hidden = encoder.model(ids[:8], mask[:8])
    pooled = masked_mean_pool(hidden, mask[:8])
    assert (pooled.double() - io["mean_pooled_f64"][:8]).abs().max() <= 1e-5
