"""The straight way to the launchers, in the interpreter or on a card: the same numbers as the
ordinary one, and not taken where somebody would miss the ordinary one.

Shapes: T packed tokens, H heads, D head dim, C channels, F feed-forward.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

pytest.importorskip("triton")

import pyenc
from pyenc.errors import BackendError, InputError
from pyenc.models import encoder as encoders
from pyenc.models import straight as layers
from pyenc.models.rotary import Rotary
from pyenc.ops import (
    ALiBi,
    add_layer_norm,
    add_rms_norm,
    alibi_slopes,
    attention,
    gated_linear,
    registered,
    rotary,
)

T, H, D, C, F = 37, 2, 16, 32, 48

Call = Callable[..., Any]


def calls(device: str) -> dict[str, tuple[Call, list[Tensor]]]:
    """By op: a call, and the tensors that it takes."""

    def made(*shape: int) -> Tensor:
        return torch.randn(shape, device=device)

    cu_seqlens = torch.tensor([0, 5, 5, T], device=device, dtype=torch.int32)
    alibi = ALiBi(alibi_slopes(H).to(device))
    qkv = [made(T, H, D) for _ in range(3)]

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Any:
        return attention(q, k, v, cu_seqlens, bias=alibi, return_lse=True, backend="triton")

    def norm(x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor) -> Any:
        return add_layer_norm(x, residual, weight, bias, 1e-5, backend="triton")

    def rms(x: Tensor, weight: Tensor) -> Any:
        return add_rms_norm(x, None, weight, 1e-5, backend="triton")

    def gated(x: Tensor, weight: Tensor, bias: Tensor) -> Any:
        return gated_linear(x, weight, bias, "gelu", False, backend="triton")

    angles, places = made(T, D // 2), torch.arange(T, device=device)
    cos, sin = angles.cos(), angles.sin()

    def turn(x: Tensor) -> Any:
        return rotary(x, cos, sin, places, backend="triton")

    return {
        "attention": (attend, qkv),
        "layer norm": (norm, [made(T, C), made(T, C), made(C), made(C)]),
        "rms norm": (rms, [made(T, C), made(C)]),
        "gated": (gated, [made(T, C), made(2 * F, C), made(2 * F)]),
        "gated apart": (gated, [made(T, C + 1), made(2 * F, C + 1), made(2 * F)]),
        "rotary": (turn, [made(T, 3 * H, D)[:, : 2 * H]]),
    }


NAMES = ("attention", "layer norm", "rms norm", "gated", "gated apart", "rotary")
OPS = {"attention": "attention", "layer norm": "add_norm", "rms norm": "add_norm",
       "gated": "gated_linear", "gated apart": "gated_halves", "rotary": "rotary"}  # fmt: skip


def flat(found: Any) -> list[Tensor]:
    return [found] if isinstance(found, Tensor) else list(found)


class Counting(torch.utils._python_dispatch.TorchDispatchMode):
    """Which ops of ours the dispatcher is asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "pyenc":
            self.seen.append(func._schema.name.partition("::")[2])
        return func(*args, **(kwargs or {}))


@pytest.fixture
def dispatched(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of our ops whose implementation was reached through the dispatcher."""
    seen: list[str] = []
    for name in set(OPS.values()):
        op = getattr(torch.ops.pyenc, name)

        def noting(*args: Any, _op: Any = op, _name: str = name) -> Any:
            seen.append(_name)
            return _op(*args)

        monkeypatch.setattr(torch.ops.pyenc, name, noting)
    return seen


@pytest.mark.parametrize("name", NAMES)
def test_the_same_bits(name: str, device: str, dispatched: list[str]) -> None:
    call, given = calls(device)[name]
    with torch.inference_mode():
        found = flat(call(*given))
        assert dispatched == []
        with pytest.MonkeyPatch.context() as patch:
            for module in ("norm", "gated", "rotary", "attention.straight"):
                ops = importlib.import_module(f"pyenc.ops.{module}")
                patch.setattr(ops, "plain", lambda *tensors: False)
            wanted = flat(call(*given))
        assert dispatched == [OPS[name]]
    for one, other in zip(found, wanted, strict=True):
        assert one.dtype == other.dtype
        assert one.stride() == other.stride()
        assert torch.equal(one, other)


@pytest.mark.parametrize("name", NAMES)
def test_without_a_gradient_nothing_is_a_view(name: str, device: str) -> None:
    """A view made under no_grad may not be written to where gradients are on."""
    call, given = calls(device)[name]
    with torch.no_grad():
        for out in flat(call(*given)):
            assert out is given[0] or not out._is_view()


@pytest.mark.parametrize("name", NAMES)
def test_a_gradient_goes_through_the_op(name: str, device: str, dispatched: list[str]) -> None:
    call, given = calls(device)[name]
    given = [x.requires_grad_() for x in given]
    out = flat(call(*given))[0]
    assert dispatched == [OPS[name]]
    out.sum().backward()
    assert all(x.grad is not None for x in given)


@pytest.mark.parametrize("name", NAMES)
def test_a_mode_sees_the_op(name: str, device: str) -> None:
    call, given = calls(device)[name]
    with torch.inference_mode(), Counting() as mode:
        call(*given)
    assert mode.seen == [OPS[name]]


@pytest.mark.parametrize("name", [n for n in NAMES if n not in ("attention", "rotary")])
def test_fake_tensors_launch_nothing(name: str, device: str) -> None:
    call, given = calls(device)[name]
    mode = FakeTensorMode()
    fakes = [mode.from_tensor(x) for x in given]
    with torch.inference_mode():
        real = flat(call(*given))
    with torch.no_grad(), mode:
        found = flat(call(*fakes))
    assert all(isinstance(x, FakeTensor) for x in found)
    assert [x.shape for x in found] == [x.shape for x in real]


@pytest.mark.parametrize("name", NAMES)
def test_a_compiled_graph_has_the_op(name: str, device: str) -> None:
    call, given = calls(device)[name]
    graphs = []

    def keep(graph: Any, example: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    with torch.no_grad():
        found = flat(torch.compile(call, backend=keep, fullgraph=True)(*given))
        wanted = flat(call(*given))
    targets = [str(node.target) for graph in graphs for node in graph.graph.nodes]
    assert sum(target.startswith(f"pyenc.{OPS[name]}") for target in targets) == 1
    assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))


def test_what_plain_is_not(device: str) -> None:
    x = torch.ones(3, device=device)

    class Own(Tensor):
        pass

    with torch.no_grad():
        assert registered.plain(x, nn.Parameter(x))
        assert not registered.plain(x, x.as_subclass(Own))
        imaginary = torch.ones(3, dtype=torch.complex64, device=device).conj().imag
        assert imaginary.is_neg()
        assert not registered.plain(imaginary)
        assert not registered.plain(None)  # type: ignore[arg-type]
        with torch.autograd.forward_ad.dual_level():
            assert not registered.plain(x)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert not registered.plain(x)
        with torch.profiler.profile():
            assert not registered.plain(x)
        with FakeTensorMode():
            assert not registered.plain(x)
        with torch.device("meta"):
            assert not registered.plain(x)
        said = []
        torch.func.vmap(lambda y: said.append(registered.plain(x)) or y)(x)
        torch.jit.trace(lambda y: said.append(registered.plain(x)) or y, x, check_trace=False)
        assert said
        assert not any(said)
    assert not registered.plain(x)
    with torch.inference_mode():
        assert registered.plain(x)


@pytest.mark.parametrize("name", NAMES)
def test_mistakes_are_told_as_ever(name: str, device: str) -> None:
    call, given = calls(device)[name]
    with torch.inference_mode():
        for wrong in (given[0][..., :-1], given[0].int(), given[0].double(), [1.0]):
            with pytest.raises((InputError, BackendError), match=r"must|cannot serve|float64"):
                call(wrong, *given[1:])


@pytest.mark.parametrize("bounds", [[0, 5, T + 1], [0, 9, 8, T], [1, T]])
def test_wrong_lengths_are_told(bounds: list[int], device: str) -> None:
    """Of a card they are not read."""
    if device != "cpu":
        pytest.skip("taken on trust")
    _, qkv = calls(device)["attention"]
    with torch.inference_mode(), pytest.raises(InputError, match="cu_seqlens"):
        attention(*qkv, torch.tensor(bounds), backend="triton")


@pytest.mark.parametrize(
    "wrong",
    [
        {"scale": float("nan")}, {"scale": "big"}, {"scale": torch.tensor(0.3)}, {"skip_eps": 1.0},
        {"dropout_p": None}, {"backend": "none"},
    ],
)  # fmt: skip
def test_wrong_options_are_told(wrong: dict[str, Any], device: str) -> None:
    _, qkv = calls(device)["attention"]
    cu_seqlens = torch.tensor([0, T], device=device)
    with torch.inference_mode(), pytest.raises((InputError, BackendError)):
        attention(*qkv, cu_seqlens, **{"backend": "triton", **wrong})


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


MODULES = ("", "attention", "attention.qkv", "attention.out", "attention_norm", "feed_forward",
           "feed_forward.up", "feed_forward.down", "feed_forward_norm")  # fmt: skip


@pytest.mark.parametrize("name", MODULES)
@pytest.mark.parametrize("how", ["hook", "pre-hook", "forward", "class"])
@pytest.mark.parametrize("family", ["jina", "eurobert"])
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
        lambda layer: setattr(layer, "second_norm", layer.attention_norm),
        lambda layer: setattr(layer.attention, "q_norm", layer.attention_norm),
        lambda layer: setattr(layer.attention, "position_bias", nn.Identity()),
        lambda layer: setattr(layer.attention, "position_bias", ALiBi(alibi_slopes(H))),
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
        lambda layer: setattr(layer.attention_norm, "plus_one", True),
        lambda layer: setattr(layer.attention_norm, "bias", layer.attention_norm.weight),
        lambda layer: setattr(layer, "attention_term_norm", layer.attention_norm),
        lambda layer: setattr(layer, "feed_forward_term_norm", layer.attention_norm),
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
