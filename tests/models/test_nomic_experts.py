"""nomic-bert with mixtures of experts: a folder as nomic-embed-text-v2-moe is published.

Its code cannot be run here, nor were its weights seen: the states are held against the formula
that is written out in tests/mixtures.py, of every layer and in float64.
"""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from torch import Tensor

import pyenc
from pyenc.errors import CheckpointError
from pyenc.loading import Checkpoint, load_checkpoint, save_checkpoint
from pyenc.models import Experts
from pyenc.models.rotary import Rotary
from tests.mixtures import CONFIG, TEXT, folder_of, hidden_states, tensors
from tests.oracle import assert_right, naively

LENGTHS = (9, 1, 33)
BACKENDS = ("reference", "torch", None)
TEXTS = ["What is a mixture?", "", "Eight experts and a router, of which each token asks two."]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return folder_of(tmp_path / "published")


def batch() -> tuple[list[Tensor], Tensor]:
    texts = [torch.randint(4, 150, (n,)) for n in LENGTHS]
    return texts, torch.tensor((0, *LENGTHS)).cumsum(0)


def test_the_encoder_of_the_published_config() -> None:
    """With the sizes that it has: 475,292,928 parameters in 148 tensors."""
    from pyenc.models import Encoder
    from pyenc.models.families import ConfigFile
    from pyenc.models.families.nomic import FAMILY
    from pyenc.models.meta import on_meta

    sizes = {
        "n_embd": 768, "n_head": 12, "n_inner": 3072, "n_layer": 12, "num_experts": 8,
        "vocab_size": 250048,
    }  # fmt: skip
    shape = FAMILY.shape(ConfigFile("config.json", CONFIG | sizes), frozenset())
    assert shape.experts == Experts(count=8, each=2, layers=(False, True) * 6)
    assert (shape.gated, shape.activation, shape.norm_eps) == (False, "gelu", 1e-5)
    assert (shape.qkv_bias, shape.out_bias, shape.up_bias, shape.down_bias) == (True,) * 4
    assert (shape.rotary, shape.max_length, shape.type_vocab_size) == (Rotary(10_000.0), 2048, 1)
    # The original code drops nothing by embd_pdrop, 0.1 in the file.
    assert not shape.drops
    with on_meta():
        encoder = Encoder(shape)
    assert sum(p.numel() for p in encoder.parameters()) == 475_292_928
    assert len(FAMILY.parts(shape, frozenset())) == len(list(encoder.parameters())) == 148


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"moe_top_k": 1},
        {"moe_top_k": 5},
        {"moe_normalize_expert_weights": True},
        {"moe_every_n_layers": 3, "n_layer": 5},
        {"num_experts": 8, "n_inner": 33, "rotary_emb_base": 1000},
    ],
    ids=str,
)
def test_the_written_out_states(changes: dict[str, Any], tmp_path: Path) -> None:
    for seed in range(2):
        path = folder_of(tmp_path / str(seed), seed, **changes)
        texts, bounds = batch()
        right = torch.cat([hidden_states(tensors(seed, **changes), t, **changes) for t in texts])
        for dtype, backend in itertools.product(("float64", "float32"), BACKENDS):
            encoder = load_checkpoint(path, dtype=dtype, backend=backend, skip_eps=0).encoder
            with torch.no_grad():
                found = encoder.forward_packed(torch.cat(texts), bounds)
            off = (found - right).abs().max()
            assert off <= 1e-5, f"{dtype}, {backend}: off by {off:.2g}"


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_halves_stay_near(dtype: str, tmp_path: Path) -> None:
    """Of a token in the middle, no further than twice the naive computation: some are sent to
    another expert by what is rounded before the router, in one computation or in the other."""
    off: dict[str | None, list[Tensor]] = {backend: [] for backend in BACKENDS}
    for seed in range(6):
        path = folder_of(tmp_path / str(seed), seed)
        texts, bounds = batch()
        right = torch.cat([hidden_states(tensors(seed), text) for text in texts])
        for backend, errors in off.items():
            encoder = load_checkpoint(path, dtype=dtype, backend=backend, skip_eps=0).encoder
            with torch.no_grad(), naively():
                found = encoder.forward_packed(torch.cat(texts), bounds)
            assert found.dtype == getattr(torch, dtype)
            errors.append((found.double() - right).abs().amax(-1))
    middle = {backend: torch.cat(errors).median() for backend, errors in off.items()}
    assert max(middle["torch"], middle[None]) <= 2 * middle["reference"]


@pytest.mark.parametrize("prefix", ["", "bert.", "model."])
def test_saved_as_it_came(prefix: str, folder: Path, tmp_path: Path) -> None:
    weights = {prefix + name: tensor for name, tensor in tensors().items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    checkpoint = load_checkpoint(folder)
    assert checkpoint.family.name == "nomic-bert"
    save_checkpoint(checkpoint, tmp_path / "saved")
    saved = load_file(tmp_path / "saved" / "model.safetensors")
    assert saved.keys() == weights.keys()
    assert all(torch.equal(saved[name], weights[name]) for name in weights)
    assert json.loads((tmp_path / "saved" / "config.json").read_text()) == CONFIG | {
        "torch_dtype": "float32"
    }
    half = load_checkpoint(folder, dtype="bfloat16")
    save_checkpoint(half, tmp_path / "half")
    assert load_checkpoint(tmp_path / "half", dtype="auto").encoder.dtype == torch.bfloat16


def test_trained_and_saved(folder: Path, tmp_path: Path) -> None:
    """A step moves the router and the experts that were asked, and is there after loading."""
    checkpoint = load_checkpoint(folder)
    encoder = checkpoint.encoder.train()
    before = {name: p.detach().clone() for name, p in encoder.named_parameters()}
    texts, bounds = batch()
    optimizer = torch.optim.SGD(encoder.parameters(), 1e-2)
    states = encoder.forward_packed(torch.cat(texts), bounds)
    (states * torch.randn(states.shape)).sum().backward()
    optimizer.step()
    for name in ("router", "up", "down", "bias"):
        moved = dict(encoder.named_parameters())[f"layers.1.feed_forward.{name}"]
        assert not torch.equal(moved, before[f"layers.1.feed_forward.{name}"])
    save_checkpoint(checkpoint, tmp_path / "trained")
    again = load_checkpoint(tmp_path / "trained").encoder
    encoder.eval()
    with torch.no_grad():
        found = again.forward_packed(torch.cat(texts), bounds)
        assert torch.equal(found, encoder.forward_packed(torch.cat(texts), bounds))


def test_texts(folder: Path, tmp_path: Path) -> None:
    """Mean pooling, unit length, saved and loaded again; each text for itself."""
    encoder = pyenc.load(folder, skip_eps=0)
    found = encoder.encode(TEXTS)
    words = Tokenizer.from_file(str(TEXT / "tokenizer.json"))
    for text, vector in zip(TEXTS, found, strict=True):
        pooled = hidden_states(tensors(), torch.tensor(words.encode(text).ids)).mean(0)
        right = pooled / pooled.norm()
        assert np.abs(vector - right.numpy()).max() < 1e-5
    encoder.save(tmp_path / "again")
    assert (pyenc.load(tmp_path / "again", skip_eps=0).encode(TEXTS) == found).all()


def test_without_experts(tmp_path: Path) -> None:
    """As nomic-xlm-2048, which it began as: plain GELU in all layers."""
    none = {"num_experts": 0, "moe_every_n_layers": 0}
    weights = tensors(n_layer=1, moe_every_n_layers=2)
    path = folder_of(tmp_path / "plain", n_layer=1)
    (path / "config.json").write_text(json.dumps(CONFIG | none | {"n_layer": 1}))
    encoder = load_checkpoint(path, dtype="float64").encoder
    assert encoder.config.experts is None
    ids = torch.randint(4, 150, (12,))
    with torch.no_grad():
        found = encoder(ids[None])[0]
    torch.testing.assert_close(found, hidden_states(weights, ids, n_layer=1), rtol=0, atol=1e-5)


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"expert_choice_router": True}, "expert_choice_router is True, but"),
    ({"num_shared_experts": 1}, "num_shared_experts is 1, but"),
    ({"moe_impl": "sequential"}, r"moe_impl is 'sequential', but .*expected 'megablocks'"),
    ({"ffn_div": 2}, "ffn_div is 2, but"),
    ({"moe_capacity_factor": 1.25}, "moe_capacity_factor is 1.25, but"),
    ({"moe_jitter_eps": 0.1}, "moe_jitter_eps is 0.1, but"),
    ({"uniform_expert_assignment": True}, "uniform_expert_assignment is True, but"),
    ({"moe_normalize_expert_weights": 2}, "moe_normalize_expert_weights is 2, but"),
    ({"moe_resid_pdrop": 0.1}, "moe_resid_pdrop is 0.1, but pyenc drops alike"),
    ({"moe_top_k": 0}, "each must be from 1 to the 5 there are, got 0"),
    ({"moe_top_k": 6}, "each must be from 1 to the 5 there are, got 6"),
    ({"moe_top_k": ...}, "moe_top_k must be a whole number"),
    ({"num_experts": 5000}, "count must be from 1 to 4,096, got 5000"),
    ({"num_experts": 0}, "num_experts is 0 and moe_every_n_layers is 2"),
    ({"num_experts": 4}, r"experts.mlp.w1' has shape \(100, 24\), but .* \(80, 24\)|router.layer"),
    ({"n_inner": 21}, r"has shape"),
    ({"moe_every_n_layers": ...}, "num_experts is 5 and moe_every_n_layers is None"),
    ({"moe_every_n_layers": 1}, "moe_every_n_layers is 1, of 4 layers; expected neither"),
    ({"moe_every_n_layers": 5}, "moe_every_n_layers is 5, of 4 layers"),
    ({"moe_every_n_layers": 3}, "missing tensor 'encoder.layers.3.mlp.fc1.weight'"),
    ({"n_layer": 10**6}, "n_layer is 1000000, and the weights have 52 tensors in all"),
    ({"activation_function": "swiglu"}, "activation_function is 'swiglu'; pyenc serves nomic-bert"),
    ({"activation_function": "gelu_new"}, "activation_function is 'gelu_new', but"),
    ({"activation_function": ..., "hidden_act": "gelu"}, "hidden_act is 'gelu', but"),
    ({"hidden_act": "silu"}, "hidden_act is 'silu', but"),
    ({"qkv_proj_bias": False}, "unexpected tensor 'encoder.layers.0.attn"),
    ({"mlp_fc1_bias": False}, "unexpected tensor 'encoder.layers.0.mlp.fc1.bias'"),
    ({"mlp_fc2_bias": False}, "unexpected tensor 'encoder.layers.0.mlp.fc2.bias'"),
    ({"prenorm": True}, "prenorm is True"),
]


@pytest.mark.parametrize(("change", "message"), REFUSED, ids=[str(c) for c, _ in REFUSED])
def test_refused(change: dict[str, Any], message: str, folder: Path) -> None:
    said = {key: value for key, value in (CONFIG | change).items() if value is not ...}
    (folder / "config.json").write_text(json.dumps(said))
    with pytest.raises(CheckpointError, match=message) as caught:
        load_checkpoint(folder)
    assert "config.json" in str(caught.value)


@pytest.mark.parametrize("lost", ["router.layer.weight", "experts.mlp.w2", "experts.bias"])
def test_a_tensor_is_missing(lost: str, folder: Path) -> None:
    weights = tensors()
    del weights[f"encoder.layers.3.mlp.{lost}"]
    save_file(weights, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=f"missing tensor 'encoder.layers.3.mlp.{lost}'"):
        load_checkpoint(folder)


def test_a_gradient_of_every_parameter(folder: Path) -> None:
    """Against the slope of the formula itself."""
    checkpoint: Checkpoint = load_checkpoint(folder, skip_eps=0)
    encoder, ids = checkpoint.encoder, torch.randint(4, 150, (40,))
    onto = torch.randn(40, 24, dtype=torch.float64)
    leaves = {n: t.double().requires_grad_() for n, t in tensors().items()}
    right = torch.autograd.grad((hidden_states(leaves, ids) * onto).sum(), list(leaves.values()))
    slopes = dict(zip(leaves, right, strict=True))
    named = dict(encoder.named_parameters())

    def gradients(backend: str | None) -> dict[str, Tensor]:
        encoder.backend = backend
        states = encoder.forward_packed(ids, torch.tensor([0, 40]))
        found = torch.autograd.grad((states * onto.float()).sum(), list(named.values()))
        return dict(zip(named, found, strict=True))

    naive, found = gradients("reference"), gradients(None)
    for name, (source,) in checkpoint.sources.items():
        assert_right(found[name], naive[name], slopes[source], gradient=True, what=name)
