"""Layers that a text goes through again, and tables narrower than the states."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pyenc.errors import InputError
from pyenc.loading import load_checkpoint, own_checkpoint, save_checkpoint
from pyenc.models import Encoder, EncoderConfig
from pyenc.models.head_config import HeadConfig
from pyenc.models.packing import pack
from pyenc.models.rotary import Rotary

ORDER = (1, 0, 0, 1, 2, 0)
SIZES: dict[str, Any] = {
    "vocab_size": 40, "hidden_size": 24, "num_layers": 3, "num_heads": 4, "intermediate_size": 30,
    "max_length": 50,
}  # fmt: skip
POST = EncoderConfig(**SIZES, position="alibi", layer_order=ORDER, embedding_size=10)
PRE = EncoderConfig(
    **SIZES, position="rotary", rotary=Rotary(1e3), norm_first=True, layer_order=ORDER, window=3,
    local=(False, True, False), causal=True,
)  # fmt: skip


def made(config: EncoderConfig) -> Encoder:
    torch.manual_seed(5)
    encoder = Encoder(config).eval()
    for parameter in encoder.parameters():
        torch.nn.init.normal_(parameter, float(parameter.ndim == 1), 0.2)
    return encoder


def unrolled(encoder: Encoder) -> Encoder:
    """The same with a layer of its own for each step."""
    config = encoder.config
    local = tuple(config.local[i] for i in ORDER) if config.local else ()
    flat = Encoder(replace(config, layer_order=(), num_layers=len(ORDER), local=local))
    state = {k: v for k, v in encoder.state_dict().items() if not k.startswith("layers.")}
    for step, i in enumerate(ORDER):
        layer = encoder.layers[i].state_dict()
        state |= {f"layers.{step}.{key}": value for key, value in layer.items()}
    flat.load_state_dict(state)
    return flat.eval()


def batch() -> tuple[Tensor, Tensor]:
    torch.manual_seed(6)
    return torch.randint(0, 40, (3, 9)), torch.ones(3, 9, dtype=torch.long).tril(6)


def test_steps_without_end() -> None:
    with pytest.raises(InputError, match="layer_order has 4,097 steps; at most 4,096"):
        replace(POST, layer_order=(0,) * 4097)
    assert replace(POST, layer_order=(0,) * 4096).depth == 4096


@pytest.mark.parametrize("config", [POST, PRE], ids=["post", "pre"])
def test_as_layers_of_their_own(config: EncoderConfig) -> None:
    """Answers, each state on the way, and gradients, which are sums over the steps."""
    encoder = made(config)
    flat = unrolled(encoder)
    assert config.depth == flat.config.depth == len(ORDER)
    assert {n.split(".")[1] for n in encoder.state_dict() if n[:7] == "layers."} == {"0", "1", "2"}
    ids, mask = batch()
    states: tuple[list[Tensor], list[Tensor]] = ([], [])
    with torch.no_grad():
        for one, found in zip((encoder, flat), states, strict=True):
            one.hidden(pack(ids, mask, None), found)
    assert len(states[0]) == len(ORDER) + 1
    for a, b in zip(*states, strict=True):
        assert torch.equal(a, b)
    for again in (False, True):
        for one in (encoder, flat):
            one.zero_grad()
            one.train()
            if again:
                one.gradient_checkpointing_enable(every_n_layers=2)
            one(ids, mask).square().sum().backward()
        for i, layer in enumerate(encoder.layers):
            steps = [flat.layers[step] for step, at in enumerate(ORDER) if at == i]
            for name, parameter in layer.named_parameters():
                right = sum(step.get_parameter(name).grad for step in steps)  # type: ignore[misc]
                assert parameter.grad is not None
                torch.testing.assert_close(parameter.grad, right, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("config", [POST, PRE], ids=["post", "pre"])
def test_saved_in_our_own_format(config: EncoderConfig, tmp_path: Path) -> None:
    encoder = made(config)
    save_checkpoint(own_checkpoint(encoder), tmp_path)
    again = load_checkpoint(tmp_path).encoder
    assert again.config == config
    ids, mask = batch()
    with torch.no_grad():
        assert torch.equal(again(ids, mask), encoder(ids, mask))


def test_narrower_tables() -> None:
    encoder = made(POST)
    assert encoder.embeddings.word.weight.shape == (40, 10)
    assert encoder.embeddings.project is not None
    assert encoder.embeddings.project.weight.shape == (24, 10)
    # The layer is there where it is said, of whatever width; without a word there is none.
    assert made(replace(POST, embedding_size=24)).embeddings.project is not None
    assert made(replace(POST, embedding_size=None)).embeddings.project is None
    headed = made(replace(POST, lm_head=HeadConfig()))
    assert headed.token_logits(*batch()).shape == (3, 9, 40)


def test_what_layers_add_to_is_float32_under_autocast() -> None:
    """Also where the first of it is a product."""
    encoder = made(POST)
    states: list[Tensor] = []
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        encoder.hidden(pack(*batch(), None), states)
    assert {state.dtype for state in states} == {torch.float32}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layer_order": (0, 3)}, "layer_order must name layers from 0 to 2"),
        ({"layer_order": (0, -1)}, "layer_order must name layers from 0 to 2"),
        ({"embedding_size": 0}, "embedding_size must be positive: 0"),
        ({"lm_head": HeadConfig(transform=False)}, "lm_head without transform goes with no"),
    ],
)
def test_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        replace(POST, **change)
