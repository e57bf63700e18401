"""Layers that go straight to the launchers, in the interpreter or on a card: the same numbers as by
their modules, and not where somebody would miss those.

Shapes: T packed tokens, H heads, C channels, F feed-forward.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("triton")

import pyenc
from pyenc.errors import InputError
from pyenc.models import encoder as encoders
from pyenc.models import straight as layers
from pyenc.models.experts import Experts
from pyenc.models.rotary import Rotary
from pyenc.models.rotary_scaling import RotaryScaling
from pyenc.ops import ALiBi, alibi_slopes

T, H, C, F = 37, 2, 32, 48


@pytest.mark.parametrize(
    ("place", "name", "wrong", "told"),
    [
        ("feed_forward", "activation", "swish", "gated_linear: unknown activation 'swish'"),
        ("attention", "window", (3, -2), "window must be"),
    ],
)
def test_mistakes_in_a_layer_are_told_as_ever(
    place: str, name: str, wrong: Any, told: str, device: str
) -> None:
    encoder = small(device)
    setattr(encoder.layers[1].get_submodule(place), name, wrong)
    with pytest.raises(InputError, match=told):
        run(encoder, device)


PRE = {"norm_first": True, "embedding_norm": False}
BARE = {"qkv_bias": False, "out_bias": False, "up_bias": False, "down_bias": False}
FAMILIES: dict[str, dict[str, Any]] = {
    "jina": {"position": "alibi", "gated": True, "up_bias": False},
    "bert": {"position": "absolute", "num_positions": 64},
    "tanh": {"position": "absolute", "num_positions": 64, "activation": "gelu_tanh"},
    "nomic": {"position": "rotary", "rotary": Rotary(1e4), "gated": True, "activation": "silu"},
    "turned bert": {"position": "rotary", "rotary": Rotary(1e4), "activation": "relu"},
    "mpnet": {"position": "absolute", "num_positions": 64, "relative_buckets": 8,
              "relative_max_distance": 20},
    "table": {"position": "table_alibi", "position_fields": {"reach": 3}},
    "t5": {"position": "relative", "relative_buckets": 8, "relative_max_distance": 20,
           "scale": 1.0, "head_size": 24, "norm": "rms", "wide_residual": True, **PRE, **BARE},
    "modernbert": {"position": "rotary", "rotary": Rotary(1e4), "local_rotary": Rotary(1e2),
                   "window": 3, "local": (False, True), "gated": True, "norm_bias": False,
                   "first_norm": False, **PRE, **BARE},
    "eurobert": {"position": "rotary", "rotary": Rotary(1e4), "num_heads": 4, "num_kv_heads": 2,
                 "gated": True, "activation": "silu", "norm": "rms", **PRE},
    "qwen2": {"position": "rotary", "rotary": Rotary(1e4), "local_rotary": Rotary(1e2), "window": 3,
              "local": (False, True), "causal": True, "num_kv_heads": 1, "gated": True,
              "activation": "silu", "norm": "rms", **PRE},
    "qwen3": {"position": "rotary", "rotary": Rotary(1e4), "causal": True, "num_kv_heads": 1,
              "head_size": 24, "head_norm": True, "gated": True, "activation": "silu",
              "norm": "rms", **PRE, **BARE},
    "gemma": {"position": "rotary", "rotary": Rotary(1e4), "local_rotary": Rotary(1e2), "window": 3,
              "local": (False, True), "num_kv_heads": 1, "head_norm": True, "term_norm": True,
              "norm_plus_one": True, "gated": True, "activation": "gelu_tanh", "norm": "rms",
              **PRE, **BARE},
    "gemma to one side": {
        "position": "rotary", "rotary": Rotary(1e4, scaling=RotaryScaling("linear", 8.0)),
        "local_rotary": Rotary(1e2), "window": 3, "local": (False, True), "causal": True,
        "head_norm": True, "term_norm": True, "norm_plus_one": True, "gated": True, "norm": "rms",
        **PRE, **BARE,
    },
    "neobert": {"position": "rotary", "rotary": Rotary(1e4), "gated": True, "activation": "silu",
                "norm": "rms", **PRE, **BARE},
    "longformer": {"position": "absolute", "num_positions": 64, "window": 3,
                   "local": (True, True)},
    "yarn": {"position": "rotary", "rotary": Rotary(1e4, scaling=RotaryScaling("yarn", 4.0, 16)),
             "num_kv_heads": 1, "gated": True, "activation": "silu", "norm": "rms", **PRE, **BARE},
    "jina qk": {"position": "alibi", "qk_norm": True, "second_residual": True, "gated": True,
                "up_bias": False},
    "one key head": {"position": "rotary", "rotary": Rotary(1e4), "num_kv_heads": 1, **PRE},
}  # fmt: skip


def small(device: str, family: str = "jina") -> pyenc.Encoder:
    torch.manual_seed(0)
    fields: dict[str, Any] = {
        "vocab_size": 11, "hidden_size": C, "num_layers": 2, "num_heads": H,
        "intermediate_size": F, "max_length": 64,
    }  # fmt: skip
    config = pyenc.EncoderConfig(**(fields | FAMILIES[family]))
    encoder = pyenc.Encoder(config, backend="triton").eval()
    for parameter in encoder.parameters():
        parameter.data += 0.2 * torch.randn_like(parameter)
    return encoder.to(device)


def run(encoder: pyenc.Encoder, device: str) -> tuple[Tensor, int]:
    """Hidden states, and how many layers went straight."""
    ids = torch.arange(T, device=device) % 11
    cu_seqlens = torch.tensor([0, 9, T], device=device)
    went = []

    def noted(way: Callable[..., Any]) -> Callable[..., Any]:
        def noting(*given: Any) -> Any:
            found = way(*given)
            went.append(found is not None)
            return found

        return noting

    with torch.inference_mode(), pytest.MonkeyPatch.context() as patch:
        for name in ("straight", "straight_pre_norm"):
            patch.setattr(encoders, name, noted(getattr(layers, name)))
        hidden = encoder.forward_packed(ids, cu_seqlens, contiguous=True)
    return hidden, sum(went)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_layer_gives_the_same_numbers(family: str, device: str) -> None:
    encoder = small(device, family)
    found, went = run(encoder, device)
    assert went == 2
    with mock.patch.object(layers, "plain", return_value=False):
        wanted, went = run(encoder, device)
    assert went == 0
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)


AGAIN = {"layer_order": (1, 0, 0, 1, 0), "embedding_size": 24}
MIXED = {"experts": Experts(count=3, each=2, layers=(False, True))}


@pytest.mark.parametrize("family", ["bert", "modernbert", "qwen3"])
@pytest.mark.parametrize(
    ("change", "straight", "steps"), [(AGAIN, 5, 5), (MIXED, 1, 2), (AGAIN | MIXED, 3, 5)],
    ids=["again", "mixed", "both"],
)  # fmt: skip
def test_layers_that_come_again_and_mixtures(
    family: str, change: dict[str, Any], straight: int, steps: int, device: str
) -> None:
    """A layer goes straight each time; one with experts is asked itself, between the others."""
    fields = FAMILIES[family] | change | ({"gated": False} if "experts" in change else {})
    with mock.patch.dict(FAMILIES, {family: fields}):
        encoder = small(device, family)
    assert encoder.config.depth == steps
    found, went = run(encoder, device)
    assert went == straight
    with mock.patch.object(layers, "plain", return_value=False):
        wanted, went = run(encoder, device)
    assert went == 0
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("swapped", [0, 1])
def test_layers_with_other_heads_of_keys(swapped: int, device: str) -> None:
    """In one encoder, where somebody puts one: theirs are other strides."""
    encoder = small(device, "eurobert")
    with mock.patch.dict(FAMILIES, eurobert={**FAMILIES["eurobert"], "num_kv_heads": 4}):
        encoder.layers[swapped] = small(device, "eurobert").layers[swapped]
    found, went = run(encoder, device)
    assert went == 2
    with mock.patch.object(layers, "plain", return_value=False):
        wanted, _ = run(encoder, device)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("swapped", [0, 1])
def test_layers_that_norm_what_others_do_not(swapped: int, device: str) -> None:
    """One of full width among those of heads, which are normed beside their turn."""
    encoder = small(device, "qwen3")
    other = {**FAMILIES["qwen3"], "head_norm": False, "qk_norm": True}
    with mock.patch.dict(FAMILIES, qwen3=other):
        encoder.layers[swapped] = small(device, "qwen3").layers[swapped]
    found, went = run(encoder, device)
    assert went == 1
    with mock.patch.object(layers, "plain", return_value=False):
        wanted, _ = run(encoder, device)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)


MODULES = ("", "attention", "attention.qkv", "attention.out", "attention_norm", "feed_forward",
           "feed_forward.up", "feed_forward.down", "feed_forward_norm")  # fmt: skip


FURTHER = {
    "gemma": (
        "attention.q_norm",
        "attention.k_norm",
        "attention_term_norm",
        "feed_forward_term_norm",
    ),
    "jina qk": ("attention.q_norm", "attention.k_norm", "second_norm"),
}


@pytest.mark.parametrize(
    ("family", "name"),
    [
        *((family, name) for family in ("jina", "eurobert") for name in MODULES),
        *((family, name) for family, names in FURTHER.items() for name in names),
    ],
)
@pytest.mark.parametrize("how", ["hook", "pre-hook", "forward", "class"])
def test_who_listens_to_a_module_hears(name: str, how: str, family: str, device: str) -> None:
    encoder = small(device, family)
    module: Any = encoder.layers[1].get_submodule(name)
    heard = []
    if how == "hook":
        module.register_forward_hook(lambda *given: heard.append(1))
    elif how == "pre-hook":
        module.register_forward_pre_hook(lambda *given: heard.append(1))
    else:
        real = module.forward

        def forward(*given: Any, **named: Any) -> Any:
            heard.append(1)
            return real(*given, **named)

        if how == "forward":
            module.forward = forward
        else:
            kind = type(module)
            module.__class__ = type("Own", (kind,), {})
            heard.append(1)
    _, went = run(encoder, device)
    assert went == 1
    # Of this one the ordinary way takes the weight alone, too.
    assert heard or name == "feed_forward.up"


@pytest.mark.parametrize(
    "change",
    [
        lambda layer: layer.attention.qkv.double(),
        lambda layer: layer.feed_forward_norm.half(),
        lambda layer: setattr(layer.feed_forward, "gated", False),
        lambda layer: (layer.train(), setattr(layer, "dropout", 0.1)),
        lambda layer: (layer.train(), setattr(layer.attention, "dropout", 0.1)),
        lambda layer: (layer.train(), setattr(layer.feed_forward, "dropout", 0.1)),
        lambda layer: setattr(layer, "second_norm", nn.LayerNorm(C)),
        lambda layer: setattr(layer.attention, "q_norm", layer.attention_norm),
        lambda layer: setattr(layer.attention, "position_bias", nn.Identity()),
        lambda layer: setattr(layer.attention, "position_bias", ALiBi(alibi_slopes(H))),
        lambda layer: setattr(layer.attention, "distances", nn.Identity()),
        lambda layer: setattr(
            layer.feed_forward_norm,
            "weight",
            nn.Parameter(torch._neg_view(layer.feed_forward_norm.weight.detach())),
        ),
        lambda layer: layer.feed_forward.compile(),
        lambda layer: setattr(
            layer.attention.out, "weight", nn.Parameter(layer.attention.out.weight.t())
        ),
        lambda layer: setattr(
            layer.feed_forward.down, "weight", nn.Parameter(torch.zeros(C, F + 1))
        ),
    ],
)
def test_another_layer_is_asked_itself(change: Callable[[Any], Any], device: str) -> None:
    layer = small(device).layers[0]
    x = torch.zeros(T, C, device=device)
    with torch.inference_mode():
        assert layers.post_norm_parts(layer, x) is not None
        change(layer)
        assert layers.post_norm_parts(layer, x) is None


@pytest.mark.parametrize(
    "change",
    [
        lambda layer: layer.attention.out.double(),
        lambda layer: layer.attention_norm.half(),
        lambda layer: setattr(layer.attention_norm, "gain", lambda: 1),
        lambda layer: setattr(layer.attention_norm, "bias", layer.attention_norm.weight),
        lambda layer: setattr(layer, "attention_term_norm", nn.RMSNorm(C)),
        lambda layer: setattr(layer, "feed_forward_term_norm", nn.RMSNorm(C)),
        lambda layer: (layer.train(), setattr(layer, "dropout", 0.1)),
        lambda layer: setattr(layer.attention, "k_norm", layer.attention_norm),
        lambda layer: setattr(layer.attention, "kv_heads", 4),
        lambda layer: setattr(layer.attention, "position_bias", nn.Identity()),
    ],
)
def test_another_pre_norm_layer_is_asked_itself(change: Callable[[Any], Any], device: str) -> None:
    layer = small(device, "eurobert").layers[1]
    x = torch.zeros(T, C, device=device)
    with torch.inference_mode():
        assert layers.pre_norm_parts(layer, x) is not None
        assert layers.post_norm_parts(layer, x) is None
        change(layer)
        assert layers.pre_norm_parts(layer, x) is None


def test_a_wide_residual_of_halves_is_no_way_straight(device: str) -> None:
    """In float16 its sums are float32, and so is the product before them."""
    for dtype, straight in ((torch.float32, True), (torch.bfloat16, True), (torch.float16, False)):
        layer = small(device, "t5").to(dtype).layers[0]
        x = torch.zeros(T, C, device=device, dtype=dtype)
        assert (layers.pre_norm_parts(layer, x) is not None) == straight
