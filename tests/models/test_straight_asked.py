"""Which layers are asked themselves in eager inference on a CPU: whose modules somebody listens to,
and what is given or set otherwise than the kernels take it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pyenc.models import Rotary, straight_cpu
from pyenc.models.attention import Attention
from pyenc.models.disentangled import Disentangled
from pyenc.models.feed_forward import FeedForward
from pyenc.models.layers import Layer, PreNormLayer
from pyenc.models.modules import Linear, Norm
from pyenc.ops import extension
from pyenc.ops.attention import cpu as attention_cpu
from tests.models.test_straight_layers import as_buffer, as_ever, forward, ordinary, small

pytestmark = pytest.mark.skipif(extension.missing() is not None, reason=str(extension.missing()))


MODULES = [
    "", "attention", "attention.qkv", "attention.out", "attention_norm", "feed_forward",
    "feed_forward.up", "feed_forward.down", "feed_forward_norm",
]  # fmt: skip
LISTENERS: dict[str, Any] = {
    "a hook": lambda module, hear: module.register_forward_hook(hear),
    "a hook before": lambda module, hear: module.register_forward_pre_hook(hear),
    "a forward": lambda module, hear: setattr(
        module, "forward", lambda *a, own=module.forward, **named: (hear(), own(*a, **named))[1]
    ),
}


@pytest.mark.parametrize("norm_first", [False, True], ids=["post-norm", "pre-norm"])
@pytest.mark.parametrize("listener", LISTENERS)
@pytest.mark.parametrize("name", MODULES)
def test_every_module_is_listened_to(
    name: str, listener: str, norm_first: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, heard = small(norm_first=norm_first), []
    LISTENERS[listener](model.layers[1].get_submodule(name), lambda *_: heard.append(1))
    with torch.no_grad():
        _, went = forward(model, monkeypatch)
    assert heard
    # A layer's own hooks are asked for before it is tried.
    assert went in ([True, False, True], [True, True])


@pytest.mark.parametrize("norm_first", [False, True], ids=["post-norm", "pre-norm"])
@pytest.mark.parametrize("name", ["attention", "feed_forward", ""])
def test_a_module_in_training_drops(
    name: str, norm_first: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = small(norm_first=norm_first, hidden_dropout=0.5, attention_dropout=0.5)
    model.layers[1].get_submodule(name).training = True
    torch.manual_seed(1)
    with torch.no_grad():
        found, went = forward(model, monkeypatch)
        assert went == [True, False, True]
        torch.manual_seed(1)
        assert torch.equal(found, ordinary(model, monkeypatch))


HANDED_ON: dict[str, Any] = {
    "by columns": lambda x_TC: x_TC.t().contiguous().t(),
    "double": Tensor.double,
    "one row": lambda x_TC: x_TC[:1],
    "a row fewer": lambda x_TC: x_TC[:-1],
    "without memory": lambda x_TC: x_TC.to("meta"),
}


@pytest.mark.parametrize("place", [None, 0, 1], ids=["post-norm", "states", "a term"])
@pytest.mark.parametrize("how", HANDED_ON)
def test_what_a_hook_hands_on(how: str, place: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    model = small(norm_first=place is not None)

    def hook(module: nn.Module, given: Any, found: Any) -> Any:
        if place is None:
            return HANDED_ON[how](found)
        return tuple(HANDED_ON[how](x) if i == place else x for i, x in enumerate(found))

    model.layers[0].register_forward_hook(hook)
    went = as_ever(model, monkeypatch)
    assert not went or went[1] is False


@pytest.mark.parametrize(
    ("place", "name"),
    [("attention", "_heads"), ("feed_forward", "rows"), ("attention_norm", "gain")],
)
def test_a_method_of_its_own_is_called(
    place: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, called = small(), []
    module = model.layers[1].get_submodule(place)
    own = getattr(module, name)
    setattr(module, name, lambda *a, **named: (called.append(name), own(*a, **named))[1])
    with torch.no_grad():
        _, went = forward(model, monkeypatch)
    assert went == [True, False, True]
    assert called


@pytest.mark.parametrize(
    "fields",
    [
        {"hidden_size": 2 * attention_cpu.MAX_HEAD_DIM + 2},
        {"log_length": 9},
        {"qk_norm": True, "position": "rotary", "rotary": Rotary(1000.0)},
        {"head_norm": True, "norm": "rms"},
    ],
    ids=["wide heads", "log length", "norms of the whole width, turned", "norms of heads, as is"],
)
def test_layers_that_are_asked_themselves(
    fields: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = small(**fields)
    with torch.no_grad():
        found, went = forward(model, monkeypatch)
        assert went == [False] * 3
        assert torch.equal(found, ordinary(model, monkeypatch))


def test_heads_as_wide_as_they_may_be(monkeypatch: pytest.MonkeyPatch) -> None:
    model = small(hidden_size=2 * attention_cpu.MAX_HEAD_DIM)
    with torch.no_grad():
        found, went = forward(model, monkeypatch)
        assert went == [True] * 3
        assert torch.equal(found, ordinary(model, monkeypatch))


@pytest.mark.parametrize("norm_first", [False, True], ids=["post-norm", "pre-norm"])
@pytest.mark.parametrize("limit", ["tokens", "a feed-forward", "one of halves"])
def test_up_to_a_limit(limit: str, norm_first: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    model = small(norm_first=norm_first)
    if limit == "tokens":
        monkeypatch.setattr(attention_cpu, "MAX_SPAN", 37)
    elif limit == "a feed-forward":
        monkeypatch.setattr(straight_cpu, "CPU_BYTES", 64 * 4 * 37)
    else:
        model.bfloat16()
        monkeypatch.setattr(straight_cpu, "CPU_BYTES", 64 * 2 * 37)
    with torch.no_grad():
        assert forward(model, monkeypatch, (7, 30))[1] == [True] * 3
        assert forward(model, monkeypatch, (7, 30, 1))[1] == [False] * 3


def test_numbers_of_eight_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    with torch.no_grad():
        assert forward(small().double(), monkeypatch)[1] == [False] * 3


@pytest.mark.parametrize("head_norm", [False, True])
@pytest.mark.parametrize("name", ["q_norm", "k_norm"])
def test_one_norm_of_two(name: str, head_norm: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    turned: dict[str, Any] = {}
    if head_norm:
        turned = {"position": "rotary", "rotary": Rotary(1000.0), "norm": "rms"}
    model = small(qk_norm=not head_norm, head_norm=head_norm, **turned)
    setattr(model.layers[1].attention, name, None)
    with torch.no_grad():
        found, went = forward(model, monkeypatch)
        assert went == [True, False, True]
        assert torch.equal(found, ordinary(model, monkeypatch))


def test_norms_of_heads_that_are_not_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    fields = {"head_norm": True, "norm": "rms", "position": "rotary", "rotary": Rotary(1000.0)}
    model = small(**fields)
    model.layers[1].attention.k_norm.eps = 0.5
    with torch.no_grad():
        found, went = forward(model, monkeypatch)
        assert went == [True, False, True]
        assert torch.equal(found, ordinary(model, monkeypatch))


@pytest.mark.parametrize("norm_first", [False, True], ids=["post-norm", "pre-norm"])
@pytest.mark.parametrize("name", [n for n in MODULES if n.count(".") == 1])
def test_a_weight_that_is_a_buffer(
    name: str, norm_first: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = small(norm_first=norm_first)
    as_buffer(model.layers[1].get_submodule(name), "weight")
    with torch.no_grad():
        found, went = forward(model, monkeypatch)
        assert went == [True, False, True]
        assert torch.equal(found, ordinary(model, monkeypatch))


@pytest.mark.parametrize("norm_first", [False, True], ids=["post-norm", "pre-norm"])
def test_who_listens_to_all_modules_hears(
    norm_first: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, heard = small(norm_first=norm_first), []
    handle = nn.modules.module.register_module_forward_hook(lambda module, *_: heard.append(module))
    try:
        with torch.no_grad():
            _, went = forward(model, monkeypatch)
    finally:
        handle.remove()
    assert went == [False] * 3
    assert set(model.layers.modules()) - {model.layers} == set(heard) & set(model.layers.modules())


@pytest.mark.parametrize("kind", [Layer, PreNormLayer, Attention, FeedForward, Norm, Linear])
def test_a_forward_that_a_class_was_given_since_is_called(
    kind: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, called, own = small(norm_first=kind is PreNormLayer), [], kind.forward
    monkeypatch.setattr(
        kind, "forward", lambda *a, **named: (called.append(1), own(*a, **named))[1]
    )
    with torch.no_grad():
        _, went = forward(model, monkeypatch)
    assert went == [False] * 3
    assert called


@pytest.mark.parametrize("norm_first", [False, True], ids=["post-norm", "pre-norm"])
def test_what_drops_nothing_in_training_goes_straight(
    norm_first: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = small(norm_first=norm_first).train()
    with torch.no_grad():
        found, went = forward(model, monkeypatch)
        assert went == [True] * 3
        assert torch.equal(found, ordinary(model, monkeypatch))


def test_a_disentangled_attention_of_its_own_is_called(monkeypatch: pytest.MonkeyPatch) -> None:
    model = small(position="disentangled", disentangled=Disentangled(span=8))
    attention: Any = model.layers[1].attention
    own, called = attention.disentangled, []
    with torch.no_grad():
        assert forward(model, monkeypatch)[1] == [True] * 3
        attention.disentangled = lambda *a: (called.append(1), own(*a))[1]
        assert forward(model, monkeypatch)[1] == [True, False, True]
    assert called


def test_norms_of_few_keys_in_full_width(monkeypatch: pytest.MonkeyPatch) -> None:
    model = small(qk_norm=True, num_kv_heads=1)
    with torch.no_grad():
        found, went = forward(model, monkeypatch)
        assert went == [True] * 3
        assert torch.equal(found, ordinary(model, monkeypatch))
