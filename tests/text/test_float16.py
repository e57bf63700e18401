"""A T5 or Gemma whose residual sums pass what float16 holds: computed wider, and near the truth.

They norm whatever their layers read, by the root mean square alone: embeddings and everything added
to them, times 2^k, change no vector but by the norm's epsilon, and every sum on the way.
"""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import pyenc
from pyenc.models import Encoder
from tests.conftest import GOLDEN
from tests.text.texts import TEXTS

NAMES = ["t5_instructor_gated_h6", "t5_mean_relu_h4"]
GEMMA = "gemma_embed_like_h3"
TERMS = ("post_attention_layernorm.weight", "post_feedforward_layernorm.weight")
ADDED = ("shared.weight", "SelfAttention.o.weight", "DenseReluDense.wo.weight")
LARGEST = torch.finfo(torch.float16).max


def grown(folder: Path, name: str) -> Path:
    """A golden checkpoint with sums as large as float16's weights let them be."""
    shutil.copytree(GOLDEN / name, folder)
    path = folder / "model.safetensors"
    if path.is_file():
        state = load_file(path)
    else:
        state = torch.load(folder / "pytorch_model.bin", weights_only=True)
        (folder / "pytorch_model.bin").unlink()
        state.pop("encoder.embed_tokens.weight", None)  # by another name shared.weight
    if name == GEMMA:
        # Its embeddings are times the root of its width; a norm multiplies by one and its weight.
        words = float(state["embed_tokens.weight"].abs().max()) * 48**0.5
        factor = 2.0 ** int(np.log2(LARGEST / words))
        state["embed_tokens.weight"] *= factor
        for key in (key for key in state if key.endswith(TERMS)):
            state[key] = (1 + state[key]) * factor - 1
        save_file(state, path)
        return folder
    added = [key for key in state if key.endswith(ADDED)]
    most = max(float(state[key].abs().max()) for key in added)
    factor = 2.0 ** int(np.log2(LARGEST / most))
    save_file({k: v * factor if k in added else v.clone() for k, v in state.items()}, path)
    return folder


def states(encoder: Encoder, ids: Tensor) -> Tensor:
    with torch.no_grad():
        return encoder(ids)[0].double()


@pytest.mark.parametrize("name", [*NAMES, GEMMA])
def test_sums_beyond_float16(name: str, tmp_path: Path) -> None:
    folder = grown(tmp_path / "model", name)
    encoder = pyenc.load(folder, dtype="float16", skip_eps=0)
    assert encoder.model.dtype == torch.float16
    plain = Encoder(dataclasses.replace(encoder.model.config, wide_residual=False)).half().eval()
    plain.load_state_dict(encoder.model.state_dict())
    truth = pyenc.load(folder, dtype="float64", backend="reference", skip_eps=0)
    # As far off as the same weights are where nothing overflows.
    before = pyenc.load(GOLDEN / name, dtype="float16", skip_eps=0)
    assert encoder.tokenizer is not None
    overflows = 0
    for tokens in encoder.tokenizer(TEXTS, 512):
        ids = torch.from_numpy(tokens.ids)[None]
        right = states(truth.model, ids)
        overflows += not states(plain, ids).isfinite().all()
        off = (states(encoder.model, ids) - right).abs().max()
        assert off <= 2 * (states(before.model, ids) - right).abs().max()
    assert overflows, "in plain float16 nothing overflows: this tests nothing"
    got, right_vectors = encoder.encode(TEXTS), truth.encode(TEXTS)
    assert np.isfinite(got).all()
    off_before = np.abs(before.encode(TEXTS) - right_vectors).max()
    assert np.abs(got - right_vectors).max() <= 2 * off_before


@pytest.mark.parametrize("name", NAMES)
def test_as_transformers_in_float32(name: str, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", minversion="5")
    folder = grown(tmp_path / "model", name)
    theirs = transformers.T5EncoderModel.from_pretrained(folder, dtype="float32").eval()
    encoder = pyenc.load(folder, dtype="float16", skip_eps=0)
    assert encoder.tokenizer is not None
    for tokens in encoder.tokenizer(TEXTS, 512):
        ids = torch.from_numpy(tokens.ids)[None]
        with torch.no_grad():
            right = theirs(input_ids=ids).last_hidden_state[0].double()
        got = states(encoder.model, ids)
        assert torch.cosine_similarity(got, right).min() > 0.9999
        assert (got - right).abs().max() <= 1e-2 * float(right.abs().max())
