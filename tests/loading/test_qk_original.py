"""JinaBert qk-post-norm without a gate: no golden has it, so the formula is written out here."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.functional import gelu, layer_norm, silu

from pyenc.loading import load_checkpoint, save_checkpoint
from tests.conftest import GOLDEN

SLOPES = (2**-2, 2**-4, 2**-6, 2**-8)
LAYER = "encoder.layer.0."


@pytest.fixture(params=["gelu", "silu"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """The gated golden with its way up replaced by one half as wide."""
    folder = tmp_path / "original"
    shutil.copytree(GOLDEN / "jina_qk_h4", folder)
    config = json.loads((folder / "config.json").read_text())
    config |= {"feed_forward_type": "original", "hidden_act": request.param}
    (folder / "config.json").write_text(json.dumps(config))
    tensors = load_file(folder / "model.safetensors")
    gated = tensors.pop(LAYER + "mlp.up_gated_layer.weight")
    tensors[LAYER + "mlp.up_layer.weight"] = torch.randn(48, 64).to(gated.dtype)
    save_file(tensors, folder / "model.safetensors")
    return folder


def by_hand(folder: Path, ids: list[int]) -> Tensor:
    """(N, 64) hidden states of one sequence, as the formula of the family reads."""
    activation = json.loads((folder / "config.json").read_text())["hidden_act"]
    stored = load_file(folder / "model.safetensors")
    t = {name: tensor.double() for name, tensor in stored.items()}

    def norm(x: Tensor, name: str) -> Tensor:
        return layer_norm(x, (64,), t[f"{name}.weight"], t[f"{name}.bias"], eps=1e-12)

    def linear(x: Tensor, name: str) -> Tensor:
        return x @ t[f"{name}.weight"].T + t[f"{name}.bias"]

    x = t["embeddings.word_embeddings.weight"][ids]
    x = norm(x + t["embeddings.token_type_embeddings.weight"][0], "embeddings.LayerNorm")

    own = LAYER + "attention.self."
    q = norm(linear(x, own + "query"), own + "layer_norm_q")
    k = norm(linear(x, own + "key"), own + "layer_norm_k")
    v = linear(x, own + "value")
    place = torch.arange(len(ids))
    distance = (place[:, None] - place[None, :]).abs().double()
    heads = []
    for h, slope in enumerate(SLOPES):
        part = slice(16 * h, 16 * h + 16)
        scores = q[:, part] @ k[:, part].T / math.sqrt(16) - slope * distance
        heads.append(scores.softmax(-1) @ v[:, part])
    context = torch.cat(heads, dim=-1)

    output = LAYER + "attention.output."
    h1 = norm(linear(context, output + "dense") + x, output + "LayerNorm")
    h = norm(x + h1, LAYER + "layer_norm_1")
    up = h @ t[LAYER + "mlp.up_layer.weight"].T
    m = {"gelu": gelu, "silu": silu}[activation](up)
    return norm(h + linear(m, LAYER + "mlp.down_layer"), LAYER + "layer_norm_2")


def test_against_the_formula(folder: Path) -> None:
    ids = [2, 17, 93, 5, 64, 5, 120, 3]
    expected = by_hand(folder, ids)
    for dtype, tolerance in (("float64", 1e-12), ("float32", 1e-5)):
        encoder = load_checkpoint(folder, device="cpu", dtype=dtype, skip_eps=0.0).encoder
        hidden = encoder(torch.tensor([ids]))[0]
        assert (hidden - expected).abs().max() <= tolerance * max(1, expected.abs().max()), dtype


def test_its_names(folder: Path, tmp_path: Path) -> None:
    checkpoint = load_checkpoint(folder, dtype="auto")
    assert checkpoint.family.name == "JinaBert qk-post-norm"
    assert not checkpoint.encoder.config.gated
    save_checkpoint(checkpoint, tmp_path / "saved")
    before = load_file(folder / "model.safetensors")
    after = load_file(tmp_path / "saved" / "model.safetensors")
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], before[name]) for name in before)
