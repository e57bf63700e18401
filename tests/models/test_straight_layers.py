"""Layers in eager inference on a CPU: the numbers of the ordinary way, which listeners get."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pyenc.errors import InputError
from pyenc.loading import load_checkpoint
from pyenc.models import Encoder, EncoderConfig, straight_cpu
from pyenc.models import encoder as module
from pyenc.models.int8 import WIDE, quantize_layers
from pyenc.ops import extension
from pyenc.ops.attention import cpu as attention_cpu
from pyenc.ops.linear import int8
from tests.conftest import CHECKPOINTS, read_golden

pytestmark = pytest.mark.skipif(extension.missing() is not None, reason=str(extension.missing()))


def forward(
    model: Encoder, monkeypatch: pytest.MonkeyPatch, lengths: tuple[int, ...] = (7, 30, 1)
) -> tuple[Tensor, list[bool]]:
    """Hidden states, and which layers went straight."""
    went: list[bool] = []

    def noted(way: Any) -> Any:
        def noting(*given: Any) -> Any:
            found = way(*given)
            went.append(found is not None)
            return found

        return noting

    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(3, model.config.vocab_size, (sum(lengths),), generator=generator)
    with monkeypatch.context() as patch:
        for name in ("straight", "straight_pre_norm"):
            patch.setattr(module, name, noted(getattr(module, name)))
        hidden = model.forward_packed(ids, torch.tensor((0, *lengths)).cumsum(0))
    return hidden, went


def ordinary(
    model: Encoder, monkeypatch: pytest.MonkeyPatch, lengths: tuple[int, ...] = (7, 30, 1)
) -> Tensor:
    with monkeypatch.context() as patch:
        patch.setattr(straight_cpu, "_serves", lambda *given: False)
        hidden, went = forward(model, monkeypatch, lengths)
    assert not any(went)
    return hidden


def as_ever(model: Encoder, monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Asserts that a model says, or gives, what the ordinary way does.

    Returns:
        Which of its layers went straight; none where it says that something is wrong.
    """
    said: list[Any] = []
    for way in (forward, ordinary):
        with torch.no_grad():
            try:
                said.append(way(model, monkeypatch))
            except InputError as error:
                said.append(str(error))
    if isinstance(said[0], str):
        assert said[0] == said[1]
        return []
    (found, went), right = said
    assert torch.equal(found, right)
    return went


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", [n for n in CHECKPOINTS if not n.endswith("_real")])
def test_the_same_bits(name: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    model = load_checkpoint(read_golden(name).folder).encoder.to(dtype)
    goes = model.config.score_cap is None  # a map of scores has a program, made by the ordinary way
    with torch.inference_mode():
        for _ in range(2):  # packs, where there are some, are made the first time
            found, went = forward(model, monkeypatch)
            assert went == model.config.depth * [goes]
            assert torch.equal(found, ordinary(model, monkeypatch))


@pytest.mark.skipif(int8.why_not() is not None, reason=str(int8.why_not()))
@pytest.mark.parametrize("lengths", [(7, 30, 1), (70, 3)])
@pytest.mark.parametrize("wide", [WIDE, ()], ids=["half", "all"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("fields", [{}, {"gated": True}, {"norm_first": True}], ids=str)
def test_in_eight_bits(
    fields: dict[str, Any], dtype: torch.dtype, wide: tuple[str, ...], lengths: tuple[int, ...],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    model = small(**fields).to(dtype)
    quantize_layers(model, wide=wide)
    with torch.inference_mode():
        found, went = forward(model, monkeypatch, lengths)
        assert went == [True] * 3
        assert torch.equal(found, ordinary(model, monkeypatch, lengths))
        # A layer that somebody listens to is asked itself.
        model.layers[1].attention.out.register_forward_hook(lambda *_: None)
        heard, went = forward(model, monkeypatch, lengths)
        assert went == [True, False, True]
        assert torch.equal(found, heard)


def small(**fields: Any) -> Encoder:
    torch.manual_seed(0)
    config = {
        "vocab_size": 50, "hidden_size": 32, "num_layers": 3, "num_heads": 2,
        "intermediate_size": 64, "position": "alibi", "max_length": 512,
    }  # fmt: skip
    return Encoder(EncoderConfig(**(config | fields))).eval()


@pytest.mark.parametrize("per_layer", [False, True])
def test_positions_of_a_line(per_layer: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    model = small(
        position="table_alibi", position_fields={"reach": 3}, position_per_layer=per_layer
    )
    for parameter in model.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)
    lengths = (7, 400, 1)
    with torch.no_grad():
        found, went = forward(model, monkeypatch, lengths)
        assert went == [True] * 3
        assert torch.equal(found, ordinary(model, monkeypatch, lengths))


class Pairs(nn.Module):
    def block(self, i: Tensor, j: Tensor) -> Tensor:
        return -(i[:, None] - j).abs().float()[None].expand(2, -1, -1)


@pytest.mark.parametrize("per_layer", [False, True])
def test_positions_pair_by_pair_go_the_ordinary_way(
    per_layer: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = small()
    for owner in model.layers if per_layer else [model]:
        place = owner.attention if per_layer else owner
        place.position_bias = Pairs()
    monkeypatch.setattr(Encoder, "_bias", lambda self, device: self.position_bias)
    with torch.no_grad():
        _, went = forward(model, monkeypatch)
    assert went == [False] * 3


@pytest.mark.parametrize("how", ["grad", "train", "autocast", "backend", "holes", "wide", "hook"])
def test_who_is_asked_itself(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, lengths = small(hidden_dropout=0.1), (7, 30, 1)
    with torch.no_grad():
        assert forward(model, monkeypatch)[1] == [True] * 3
        if how == "grad":
            with torch.enable_grad():
                hidden, went = forward(model, monkeypatch)
            assert hidden.requires_grad
        elif how == "train":
            _, went = forward(model.train(), monkeypatch)
        elif how == "autocast":
            with torch.autocast("cpu", dtype=torch.bfloat16):
                _, went = forward(model, monkeypatch)
        elif how == "backend":
            model.backend = "cpu"
            _, went = forward(model, monkeypatch)
        elif how == "holes":
            at = torch.tensor([0, 2, 3])
            seen: list[Any] = []
            plain = module.straight
            monkeypatch.setattr(module, "straight", lambda *a: seen.append(plain(*a)))
            model.forward_packed(at, torch.tensor([0, 3]), positions=at)
            went = [found is not None for found in seen]
        elif how == "wide":
            monkeypatch.setattr(straight_cpu, "CPU_BYTES", 64 * 4 * 37)
            _, went = forward(model, monkeypatch)
            assert went == [False] * 3
            _, went = forward(model, monkeypatch, (7, 30))
            assert went == [True] * 3
            return
        else:
            heard: list[int] = []
            model.layers[1].feed_forward.up.register_forward_hook(lambda *_: heard.append(1))
            _, went = forward(model, monkeypatch, lengths)
            assert heard
            assert went == [True, False, True]
            return
    assert went == [False] * 3


def as_buffer(module: nn.Module, name: str) -> None:
    value = getattr(module, name).detach()
    delattr(module, name)
    module.register_buffer(name, value)


def random(model: Encoder) -> Encoder:
    for parameter in model.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)
    return model


class Root:
    """A bias by distance that is no module."""

    def along(self, offsets: Tensor) -> Tensor:
        return -offsets.abs().float().sqrt()[None].expand(2, -1)


CHANGES: dict[str, Any] = {
    "a linear layer's bias": lambda layer: as_buffer(layer.attention.out, "bias"),
    "a norm's bias": lambda layer: as_buffer(layer.feed_forward_norm, "bias"),
    "a weight": lambda layer: as_buffer(layer.feed_forward.up, "weight"),
    "a position": lambda layer: setattr(layer.attention, "position_bias", Root()),
    "a norm of queries": lambda layer: setattr(
        layer.attention, "q_norm", lambda q, *_: (2 * q, q)
    ),
    "rows of few numbers": lambda layer: setattr(
        layer.attention.qkv,
        "weight",
        nn.Parameter(layer.attention.qkv.weight.detach().relu().to_sparse_csr(), False),
    ),
    "a sign to be changed": lambda layer: setattr(
        layer.attention_norm,
        "weight",
        nn.Parameter(torch._neg_view(layer.attention_norm.weight.detach()), False),
    ),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:Sparse CSR:UserWarning")
@pytest.mark.parametrize("norm_first", [False, True], ids=["post-norm", "pre-norm"])
@pytest.mark.parametrize("change", CHANGES)
def test_what_stands_elsewhere_is_not_passed_over(
    change: str, norm_first: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = random(small(norm_first=norm_first))
    with torch.no_grad():
        before = forward(model, monkeypatch)[0]
        CHANGES[change](model.layers[1])
        if change == "a norm of queries":
            model.layers[1].attention.k_norm = lambda k, *_: (k, k)
        found, _ = forward(model, monkeypatch)
        assert torch.equal(found, ordinary(model, monkeypatch))
    assert torch.equal(found, before) == (change in ("a weight", *list(CHANGES)[:2]))


@pytest.mark.parametrize("norm_first", [False, True], ids=["post-norm", "pre-norm"])
@pytest.mark.parametrize("name", ["attention.out", "attention_norm", "feed_forward.up"])
@pytest.mark.parametrize("what", ["weight", "bias"])
def test_a_parameter_without_memory_is_told_of(what: str, name: str, norm_first: bool) -> None:
    model = small(norm_first=norm_first)
    module = model.layers[1].get_submodule(name)
    setattr(module, what, nn.Parameter(getattr(module, what).detach().to("meta")))
    with torch.no_grad(), pytest.raises(InputError, match=f"{what} is on meta"):
        model(torch.ones(1, 5, dtype=torch.long))


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize(
    ("place", "name", "wrong", "told"),
    [
        ("feed_forward", "activation", "swish", "linear: unknown activation 'swish'"),
        ("attention", "window", (3, -2), "window must be"),
        ("attention", "scale", math.inf, "scale must be finite"),
        ("attention_norm", "eps", -1e-12, "add_layer_norm: eps must be finite and not negative"),
        ("feed_forward_norm", "eps", math.nan, "add_layer_norm: eps must be finite and not negat"),
    ],
)
def test_mistakes_in_a_layer_are_told_as_ever(
    place: str, name: str, wrong: Any, told: str, gated: bool
) -> None:
    model = small(gated=gated)
    setattr(model.layers[1].get_submodule(place), name, wrong)
    with torch.no_grad(), pytest.raises(InputError, match=told):
        model(torch.ones(1, 5, dtype=torch.long))


def test_a_layer_compiled_in_place_is_called(monkeypatch: pytest.MonkeyPatch) -> None:
    model, graphs = small(), []

    def backend(graph: Any, given: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    model.layers[1].compile(backend=backend)
    with torch.no_grad():
        _, went = forward(model, monkeypatch)
    assert went == [True, False, True]
    assert graphs
    torch._dynamo.reset()


def test_lengths_that_a_hook_writes_are_looked_at_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those checked before are not the ones that a kernel reads, and nobody's copy is older."""
    model = small()
    ids, cu_seqlens = torch.arange(40), torch.tensor([0, 20, 40])
    wanted = 7

    def write(*_: Any) -> None:
        cu_seqlens[1] = wanted

    model.layers[0].register_forward_hook(write)
    with torch.no_grad():
        found = model.forward_packed(ids, cu_seqlens)
        with monkeypatch.context() as patch:
            patch.setattr(attention_cpu, "shared", lambda make, *_: make())
            cu_seqlens[1] = 20
            assert torch.equal(found, model.forward_packed(ids, cu_seqlens))
        wanted, cu_seqlens[1] = 41, 20
        with pytest.raises(InputError, match="cu_seqlens"):
            model.forward_packed(ids, cu_seqlens)


def test_weights_that_change_are_read_again(monkeypatch: pytest.MonkeyPatch) -> None:
    model = small(hidden_size=512, intermediate_size=1024, num_heads=8)
    with torch.inference_mode():
        for _ in range(3):
            forward(model, monkeypatch)
    for step in range(3):
        with torch.no_grad():
            for parameter in model.parameters():
                if step == 1:
                    parameter.data = parameter.data * 0.9
                else:
                    parameter.mul_(0.9)
        with torch.inference_mode():
            found, went = forward(model, monkeypatch)
            assert all(went)
            assert torch.equal(found, ordinary(model, monkeypatch))
