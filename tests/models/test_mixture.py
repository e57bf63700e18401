"""A layer's mixture of experts gives what is written out token by token, however it is run."""

from __future__ import annotations

import copy
import dataclasses
import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pyenc.errors import CheckpointError, InputError
from pyenc.loading import load_checkpoint, own_checkpoint, save_checkpoint
from pyenc.models import Encoder, EncoderConfig, Experts
from pyenc.models import encoder as encoder_module
from pyenc.models.feed_forward import FeedForward
from pyenc.models.int8 import dequantize_layers, quantize_layers, quantized_names
from pyenc.models.mixture import Mixture
from pyenc.ops import extension
from pyenc.ops.linear import int8
from pyenc.text import graphs
from tests.mixtures import mixture
from tests.models.shapes import MIXTURE, rows
from tests.oracle import assert_right, naively

TOKENS = 37


def made(each: int = 2, normalized: bool = False, **fields: Any) -> Mixture:
    kind = Experts(count=5, each=each, layers=(True,) * 2, normalized=normalized)
    layer = Mixture(dataclasses.replace(MIXTURE, experts=kind, **fields), kind)
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    return layer.eval()


def formula(layer: Mixture, x: Tensor) -> Tensor:
    return mixture(
        x, layer.router, layer.up, layer.down, layer.bias, layer.each, layer.normalized,
        layer.activation,
    )  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("each", [1, 2, 5])
@pytest.mark.parametrize("normalized", [False, True])
@pytest.mark.parametrize("activation", ["gelu", "silu"])
def test_the_written_out_mixture(
    activation: str, normalized: bool, each: int, dtype: torch.dtype
) -> None:
    """Values and the gradient of every parameter, the router's too."""
    for seed in range(3):
        torch.manual_seed(seed)
        layer = made(each, normalized, activation=activation).to(dtype)
        x = torch.randn(TOKENS, 24).to(dtype).requires_grad_()
        exact = copy.deepcopy(layer).double()
        x64 = x.detach().double().requires_grad_()
        onto = torch.randn(TOKENS, 24, dtype=torch.float64)
        right = formula(exact, x64)
        slopes = torch.autograd.grad(right, (x64, *exact.parameters()), onto)
        with naively():
            naive = layer(x, "reference")
            naive_slopes = torch.autograd.grad(naive, (x, *layer.parameters()), onto.to(dtype))
        for backend in (None, "torch", "cpu", "reference"):
            found = layer(x, backend)
            assert found.dtype == dtype
            assert_right(found, naive, right, what=str(backend))
            grads = torch.autograd.grad(found, (x, *layer.parameters()), onto.to(dtype))
            for a, b, c in zip(grads, naive_slopes, slopes, strict=True):
                assert_right(a, b, c, gradient=True, what=str(backend))
        with torch.no_grad():
            assert_right(layer(x, None), naive, right)


def test_weights_are_not_divided_unless_asked_for() -> None:
    layer, x = made(2), torch.randn(TOKENS, 24)
    weights, chosen = layer.route(x, None)
    assert weights.shape == chosen.shape == (TOKENS, 2)
    assert (weights.sum(-1) < 0.999).all()
    assert (weights[:, 0] >= weights[:, 1]).all()
    layer.normalized = True
    divided, again = layer.route(x, None)
    torch.testing.assert_close(divided.sum(-1), torch.ones(TOKENS))
    assert torch.equal(chosen, again)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_halves_choose_as_float32_does(dtype: torch.dtype) -> None:
    """What a half cannot tell apart, in its own products, or under autocast, or in both."""
    layer = made(1)
    with torch.no_grad():
        layer.router[1:] = 0
        layer.router[1] = layer.router[0].normal_(std=0.3)
        layer.router[1, 0] = layer.router[0, 0] + 0.01
    x = layer.router[:1].detach() * 3 + torch.randn(TOKENS, 24) * 0.01
    x[:, 0] = torch.randn(TOKENS) * 0.1
    x, half = x.to(dtype), copy.deepcopy(layer).to(dtype)
    right = (x.double() @ half.router.double().t()).argmax(-1)
    logits = x @ half.router.t()
    assert (logits[:, 0] == logits[:, 1]).any(), "the case is one"
    assert set(right.tolist()) == {0, 1}
    weights, chosen = half.route(x, None)
    assert weights.dtype == torch.float32
    assert torch.equal(chosen[:, 0], right)
    with torch.autocast("cpu", dtype):
        assert torch.equal(half.route(x, None)[1][:, 0], right)
        same = (x.double() @ layer.router.double().t()).argmax(-1)
        assert torch.equal(layer.route(x.float(), None)[1][:, 0], same)


def test_of_equal_experts_the_first() -> None:
    layer, x = made(2), torch.randint(-3, 4, (TOKENS, 24)).float()  # whose sums are exact
    with torch.no_grad():
        layer.router.zero_()
    weights, chosen = layer.route(x, None)
    assert torch.equal(chosen, torch.tensor([[0, 1]]).expand(TOKENS, 2))
    assert torch.equal(weights, torch.full((TOKENS, 2), 1 / 5))
    with torch.no_grad():
        layer.router[3:] = 1.0
    found = layer.route(x.abs(), None)[1]
    assert torch.equal(found, torch.tensor([[3, 4]]).expand(TOKENS, 2))
    assert_right(
        layer(x, None), layer(x, "reference"), formula(copy.deepcopy(layer).double(), x.double())
    )


def encoder_of(**fields: Any) -> Encoder:
    encoder = Encoder(dataclasses.replace(MIXTURE, **fields)).eval()
    for parameter in encoder.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return encoder


def batch(lengths: tuple[int, ...] = (9, 1, 20)) -> tuple[Tensor, Tensor]:
    return torch.cat(rows(list(lengths))), torch.tensor((0, *lengths)).cumsum(0)


def test_which_layers() -> None:
    kinds = [type(layer.feed_forward) for layer in encoder_of().layers]
    assert kinds == [FeedForward, Mixture]
    assert "experts=5, each=2, in_features=24, width=20" in repr(encoder_of())


@pytest.mark.skipif(extension.missing() is not None, reason=str(extension.missing()))
def test_a_layer_with_one_is_asked_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """The others of the same encoder go straight on a CPU."""
    went: list[bool] = []
    straight = encoder_module.straight

    def noting(*given: Any) -> Any:
        found = straight(*given)
        went.append(found is not None)
        return found

    encoder = encoder_of()
    with torch.inference_mode():
        right = copy.deepcopy(encoder).double().forward_packed(*(given := batch()))
        monkeypatch.setattr(encoder_module, "straight", noting)
        found = encoder.forward_packed(*given)
    assert went == [True, False]
    torch.testing.assert_close(found.double(), right, rtol=0, atol=1e-5)


def test_no_cuda_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = encoder_of()
    monkeypatch.setattr(Encoder, "device", torch.device("cuda"))
    monkeypatch.setattr(graphs.attention_kernels, "why_not", lambda *_: None)
    assert graphs.why_not(encoder, 100, 2) == "how many tokens each expert has is read on the host"
    plain = Encoder(dataclasses.replace(MIXTURE, experts=None))
    assert graphs.why_not(plain, 100, 2) is None


def test_pre_norm_too() -> None:
    encoder = encoder_of(norm_first=True, norm="rms")
    assert isinstance(encoder.layers[1].feed_forward, Mixture)
    ids, bounds = batch()
    exact = copy.deepcopy(encoder).double()
    exact.backend = "reference"
    right, found = exact.forward_packed(ids, bounds), encoder.forward_packed(ids, bounds)
    torch.testing.assert_close(found.double(), right, rtol=0, atol=1e-4)
    half = encoder.bfloat16().forward_packed(ids, bounds)
    assert half.dtype == torch.bfloat16


@pytest.mark.slow
def test_compiled() -> None:
    """One graph of any lengths, forward and backward."""
    torch._dynamo.reset()
    encoder = encoder_of()
    run = torch.compile(encoder.forward_packed, fullgraph=True, dynamic=True, backend="aot_eager")
    parameters = list(encoder.parameters())
    for lengths in ((9, 1, 20), (4, 30)):
        given = batch(lengths)
        onto = torch.randn(sum(lengths), 24)
        states = [f(*given) for f in (run, encoder.forward_packed)]
        torch.testing.assert_close(*states, rtol=1e-5, atol=1e-5)
        grads = [torch.autograd.grad(s, parameters, onto) for s in states]
        for a, b in zip(*grads, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3)
        with torch.no_grad():
            torch.testing.assert_close(run(*given), states[1], rtol=1e-5, atol=1e-5)
    torch._dynamo.reset()


@pytest.mark.skipif(int8.why_not() is not None, reason=str(int8.why_not()))
def test_in_eight_bits_experts_stay_as_they_are() -> None:
    encoder = encoder_of()
    exact, given = copy.deepcopy(encoder), batch()
    names = list(quantized_names(encoder))
    assert names == [
        "layers.0.attention.out", "layers.0.feed_forward.up", "layers.1.attention.out"
    ]  # fmt: skip
    quantize_layers(encoder)
    assert not any(p.requires_grad for p in encoder.parameters())
    with torch.no_grad():
        found, right = encoder.forward_packed(*given), exact.forward_packed(*given)
    cosine = torch.cosine_similarity(found, right, dim=-1)
    assert cosine.median() > 0.99
    assert not torch.equal(found, right)
    dequantize_layers(encoder)
    assert list(encoder.state_dict()) == list(exact.state_dict())


def test_pickled_and_saved_in_the_own_format(tmp_path: Path) -> None:
    encoder = encoder_of()
    with torch.no_grad():
        right = encoder.forward_packed(*(given := batch()))
        assert torch.equal(pickle.loads(pickle.dumps(encoder)).forward_packed(*given), right)
        save_checkpoint(own_checkpoint(encoder), tmp_path)
        again = load_checkpoint(tmp_path).encoder
        assert again.config == encoder.config
        assert torch.equal(again.forward_packed(*given), right)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"count": 10**6}, "encoder: experts: Experts: count must be from 1 to 4,096"),
        ({"count": 4096}, r"shape \(5, 24\), but config.json asks for \(4096, 24\)"),
        ({"layers": [True, True]}, "missing tensor 'layers.0.feed_forward.router'"),
        ({"layers": [0, 1]}, "experts: layers must be bool, got 0"),
        ({"capacity": 1}, "experts: unknown key 'capacity'"),
    ],
)
def test_own_format_refused(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    save_checkpoint(own_checkpoint(encoder_of()), tmp_path)
    said = json.loads((tmp_path / "config.json").read_text())
    said["encoder"]["experts"] |= change
    (tmp_path / "config.json").write_text(json.dumps(said))
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"count": 0}, "count must be from 1 to 4,096, got 0"),
        ({"count": 4097}, "count must be from 1 to 4,096, got 4097"),
        ({"each": 0}, "each must be from 1 to the 5 there are, got 0"),
        ({"each": 6}, "each must be from 1 to the 5 there are, got 6"),
        ({"layers": (False, False)}, "layers must name one at least"),
        ({"layers": ()}, "layers must name one at least"),
    ],
)
def test_experts_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=f"Experts: {message}"):
        Experts(**({"count": 5, "each": 2, "layers": (False, True)} | fields))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_layers": 3}, "experts names 2 of 3 layers"),
        ({"gated": True}, "experts go with a feed-forward that is not gated"),
        ({"wide_residual": True, "norm_first": True}, "without wide_residual"),
        ({"feed_forward_dropout": "inner"}, "without dropout inside"),
        ({"feed_forward_dropout": "both"}, "without dropout inside"),
    ],
)
def test_config_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        dataclasses.replace(MIXTURE, **fields)
    assert isinstance(MIXTURE, EncoderConfig)
