"""What a checkpoint cannot hold is refused by name as it is saved, and nothing is written."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

import pyenc
from pyenc.errors import CheckpointError
from pyenc.loading import Checkpoint, load_checkpoint, save_checkpoint
from pyenc.models import Encoder
from tests.conftest import GOLDEN


class Bias:
    """A bias of one's own, as docs/attention-variants.md has it: an object, not a module."""

    def __init__(self) -> None:
        self.slopes = torch.ones(4, requires_grad=True)

    def block(self, i: Tensor, j: Tensor) -> Tensor:
        return -self.slopes[:, None, None] * (i - j).abs()

    def parameters(self) -> tuple[Tensor, ...]:
        return (self.slopes,)


class Slotted:
    __slots__ = ("table", "unset")

    def __init__(self) -> None:
        self.table = torch.ones(3)


class Nested:
    def __init__(self) -> None:
        self.parts = {"a": [Bias()]}


class Circle:
    def __init__(self) -> None:
        self.me = self


class Mine(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.slopes = nn.Parameter(torch.ones(4))


class Half(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return weight / 2


class Lora(nn.Module):
    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self.base = base
        self.down = nn.Parameter(torch.zeros(2, 64))


def set_at(path: str, make: Callable[[nn.Module], object]) -> Callable[[Encoder], None]:
    """Set an attribute of a module of the encoder to what `make` gives for the old one."""

    def change(encoder: Encoder) -> None:
        outer, _, name = path.rpartition(".")
        module = encoder.get_submodule(outer)
        value = make(getattr(module, name, nn.Module()))
        if isinstance(module, nn.ModuleList):
            module[int(name)] = value  # type: ignore[assignment]
        else:
            setattr(module, name, value)

    return change


CHANGES: dict[str, tuple[Callable[[Encoder], object], str]] = {
    "a bias": (set_at("b", lambda _: Bias()), "test_writable.Bias) holds tensors"),
    "a slotted object": (set_at("layers.0.b", lambda _: Slotted()), "layers.0.b "),
    "an object that holds it": (set_at("layers.1.attention.b", lambda _: Nested()), "attention.b "),
    "a tensor for a number": (
        set_at("embeddings.dropout", lambda _: torch.zeros(1)),
        "embeddings.dropout (torch.Tensor) holds tensors",
    ),
    "a list of tensors": (set_at("extra", lambda _: [torch.ones(1)]), "extra (builtins.list)"),
    "a module": (set_at("b", lambda _: Mine()), "b (Mine) is no part"),
    "a module without parameters": (set_at("act", lambda _: nn.GELU()), "act (GELU) is no part"),
    "a parameter": (set_at("w", lambda _: nn.Parameter(torch.ones(2))), "w (float32 (2,))"),
    "a parameter below": (
        set_at("layers.1.feed_forward.w", lambda _: nn.Parameter(torch.ones(2))),
        "layers.1.feed_forward.w (float32 (2,)) has no tensor",
    ),
    "a buffer": (lambda e: e.register_buffer("seen", torch.zeros(3)), "seen (float32 (3,))"),
    "a buffer that is never saved": (
        lambda e: e.layers[0].register_buffer("seen", torch.zeros(3), persistent=False),
        "layers.0.seen",
    ),
    "a replaced layer": (set_at("layers.1", lambda _: nn.Identity()), "layers.1 is a torch.nn"),
    "a wrapped product": (set_at("layers.0.attention.out", Lora), "layers.0.attention.out is a "),
    "a layer more": (
        lambda e: e.layers.append(type(e.layers[0])(e.config)),
        "layers.2 (Layer) is no part",
    ),
    "a layer less": (lambda e: e.layers.__delitem__(1), "layers.1 (Layer) is missing"),
    "more words": (
        set_at("embeddings.word", lambda _: nn.Embedding(140, 64)),
        "embeddings.word.weight has shape (140, 64), but config.json asks for (128, 64)",
    ),
    "another shape": (
        set_at("layers.0.feed_forward.down.weight", lambda _: nn.Parameter(torch.ones(3, 4))),
        "layers.0.feed_forward.down.weight has shape (3, 4)",
    ),
    "no bias": (set_at("layers.0.attention.out.bias", lambda _: None), "out.bias is missing"),
    "another epsilon": (
        set_at("layers.0.attention_norm.eps", lambda _: 1e-3),
        "layers.0.attention_norm.eps is 0.001, but by config.json it is 1e-12",
    ),
    "another activation": (
        set_at("layers.1.feed_forward.activation", lambda _: "silu"),
        "layers.1.feed_forward.activation is 'silu'",
    ),
    "another configuration": (
        lambda e: setattr(e, "config", replace(e.config, norm_eps=0.5)),
        "config.norm_eps is 0.5, but config.json says 1e-12",
    ),
    "a parametrization": (
        lambda e: nn.utils.parametrizations.weight_norm(e.layers[0].attention.out),
        "layers.0.attention.out",
    ),
}  # fmt: skip


@pytest.mark.parametrize("golden", ["jina_geglu_h4", "bert_mean_h4"])
@pytest.mark.parametrize("what", CHANGES)
def test_refused_by_name(tmp_path: Path, golden: str, what: str) -> None:
    change, message = CHANGES[what]
    encoder = pyenc.load(GOLDEN / golden)
    change(encoder.model)
    with pytest.raises(CheckpointError) as caught:
        encoder.save(tmp_path / "saved")
    assert message in str(caught.value), str(caught.value)
    assert "cannot hold this encoder" in str(caught.value)
    assert not (tmp_path / "saved").exists()


def without(module: nn.Module, name: str) -> None:
    delattr(module, name)


ONCE: dict[str, tuple[Callable[[Encoder], object], str]] = {
    "further": (
        set_at("adapter", lambda _: nn.Sequential(Mine(), Mine())),
        "adapter (Sequential) ",
    ),
    "parametrized": (
        lambda e: parametrize.register_parametrization(
            e.get_submodule("layers.1.attention.out"), "weight", Half()
        ),
        "layers.1.attention.out (ParametrizedLinear) is parametrized",
    ),
    "wrapped": (set_at("layers.0.attention.out", Lora), "layers.0.attention.out is a "),
    "replaced": (set_at("layers.1", lambda _: nn.Identity()), "layers.1 is a torch.nn"),
    "missing": (
        lambda e: without(e.get_submodule("layers.1"), "attention"),
        "layers.1.attention (Attention) is m",
    ),
    "of the encoder": (set_at("w", lambda _: nn.Parameter(torch.ones(2))), "w (float32 (2,)) has"),
}


@pytest.mark.parametrize("what", ONCE)
def test_a_fault_is_named_once(what: str, tmp_path: Path) -> None:
    """Not once more for each part of what is strange."""
    change, message = ONCE[what]
    encoder = pyenc.load(GOLDEN / "bert_mean_h4")
    change(encoder.model)
    with pytest.raises(CheckpointError) as caught:
        encoder.save(tmp_path / "saved")
    _, *lines = str(caught.value).splitlines()
    assert [line.startswith(f"  {message}") for line in lines] == [True], lines


@pytest.mark.parametrize("more", [0, 2])
def test_many_faults(more: int, tmp_path: Path) -> None:
    encoder = pyenc.load(GOLDEN / "bert_mean_h4")
    for i in range(5 + more):
        setattr(encoder.model, f"further_{i}", nn.Identity())
    with pytest.raises(CheckpointError) as caught:
        encoder.save(tmp_path / "saved")
    lines = str(caught.value).splitlines()[1:]
    assert lines[:5] == [
        f"  further_{i} (Identity) is no part of the family's encoder" for i in range(5)
    ]
    assert lines[5:] == ([f"  ... and {more} more"] if more else [])


def test_a_config_that_became_impossible(tmp_path: Path) -> None:
    checkpoint = load_checkpoint(GOLDEN / "bert_mean_h4")
    checkpoint.config["num_attention_heads"] = 5
    with pytest.raises(CheckpointError, match=r"^config\.json: .* num_heads 5$"):
        save_checkpoint(checkpoint, tmp_path / "saved")
    assert not (tmp_path / "saved").exists()


def train(checkpoint: Checkpoint) -> None:
    encoder = checkpoint.encoder.train()
    optimizer = torch.optim.AdamW(encoder.parameters())
    encoder(torch.arange(5, 25)[None]).square().sum().backward()
    optimizer.step()


HARMLESS: dict[str, Callable[[Checkpoint], object]] = {
    "training": train,
    "a name": lambda c: setattr(c.encoder, "note", ["mine", 3]),
    "what holds itself": lambda c: setattr(c.encoder, "note", Circle()),
    "a class": lambda c: setattr(c.encoder, "note", Slotted),
    "a hook": lambda c: c.encoder.layers[0].register_forward_hook(lambda *a: None),
    "frozen": lambda c: c.encoder.requires_grad_(False),
    "another dtype": lambda c: c.encoder.double(),
    "another backend": lambda c: setattr(c.encoder, "backend", "torch"),
    "skip_eps": lambda c: setattr(c.encoder, "skip_eps", 0.0),
    "no dropout": lambda c: setattr(c.encoder.embeddings, "dropout", 0.0),
    "gradient checkpointing": lambda c: c.encoder.gradient_checkpointing_enable(),
    "tied layers": lambda c: setattr(
        c.encoder.layers[1], "attention_norm", c.encoder.layers[0].attention_norm
    ),
    "compiled in place": lambda c: c.encoder.compile(),
}  # fmt: skip


@pytest.mark.parametrize("what", HARMLESS)
def test_what_it_can_hold(tmp_path: Path, what: str) -> None:
    checkpoint = load_checkpoint(GOLDEN / "jina_geglu_h4")
    HARMLESS[what](checkpoint)
    save_checkpoint(checkpoint, tmp_path)
    again = load_checkpoint(tmp_path, dtype="auto").encoder.state_dict()
    for name, tensor in checkpoint.encoder.state_dict().items():
        assert torch.equal(again[name], tensor), name


def test_more_words_with_a_config_that_says_so(tmp_path: Path) -> None:
    checkpoint = load_checkpoint(GOLDEN / "jina_geglu_h4")
    old = checkpoint.encoder.embeddings.word.weight
    checkpoint.encoder.embeddings.word = nn.Embedding(140, 64)
    with torch.no_grad():
        checkpoint.encoder.embeddings.word.weight[:128] = old
    checkpoint.config["vocab_size"] = 140
    checkpoint.encoder.config = replace(checkpoint.encoder.config, vocab_size=140)
    save_checkpoint(checkpoint, tmp_path)
    assert load_checkpoint(tmp_path).encoder.config.vocab_size == 140
