"""Layers in eager inference on a CPU of which something was set or stands otherwise than they are
made: what comes of it is what the ordinary way makes of it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pyenc.errors import InputError
from pyenc.models import straight_cpu
from pyenc.models.int8 import quantize_layers
from pyenc.ops import extension
from pyenc.ops.attention import cpu as attention_cpu
from pyenc.ops.linear import int8
from tests.models.test_straight_layers import as_ever, forward, ordinary, small

pytestmark = pytest.mark.skipif(extension.missing() is not None, reason=str(extension.missing()))


class Doubled(nn.Module):
    """Has no weight by that name."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor, backend: str | None) -> Tensor:
        return 2 * self.inner(x, backend)


def test_what_stands_in_the_place_of_the_last_product(monkeypatch: pytest.MonkeyPatch) -> None:
    model = small()
    model.layers[1].feed_forward.down = Doubled(model.layers[1].feed_forward.down)
    with torch.no_grad():
        found, went = forward(model, monkeypatch)
        assert went == [True, False, True]
        assert torch.equal(found, ordinary(model, monkeypatch))


@pytest.mark.parametrize(("name", "value"), [("plus_one", True), ("eps", torch.tensor(1e-5))])
def test_a_layer_norm_that_is_set_otherwise(
    name: str, value: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = small()
    setattr(model.layers[1].attention_norm, name, value)
    with torch.no_grad():
        found, went = forward(model, monkeypatch)
        assert went == [True, False, True]
        assert torch.equal(found, ordinary(model, monkeypatch))


EIGHT_BITS: dict[str, Any] = {
    "a weight of floats": lambda linear: setattr(linear, "weight", linear.weight.float()),
    "fewer rows": lambda linear: setattr(linear, "weight", linear.weight[:-1]),
    "fewer columns": lambda linear: setattr(linear, "weight", linear.weight[:, 1:].contiguous()),
    "fewer scales": lambda linear: setattr(linear, "scale", linear.scale[:-1]),
    "a scale for all": lambda linear: setattr(linear, "scale", linear.scale[:1]),
    "scales by columns": lambda linear: setattr(linear, "scale", linear.scale[None]),
    "a bias for all": lambda linear: setattr(linear, "bias", linear.bias[:1]),
    "a bias of doubles": lambda linear: setattr(linear, "bias", linear.bias.double()),
    "a bias beside": lambda linear: (
        linear._buffers.pop("bias"),
        linear.__dict__.update(bias=torch.ones(32)),
    ),
}


@pytest.mark.skipif(int8.why_not() is not None, reason=str(int8.why_not()))
@pytest.mark.parametrize("change", EIGHT_BITS)
def test_eight_bits_that_are_set_otherwise(change: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = small()
    quantize_layers(model, wide=())
    EIGHT_BITS[change](model.layers[1].attention.out)
    assert as_ever(model, monkeypatch)[:2] in ([], [True, False])


def changed(place: str, name: str, change: Any) -> Any:
    """A parameter of a layer, as `change` makes it."""

    def changing(layer: nn.Module) -> None:
        module = layer.get_submodule(place)
        setattr(module, name, nn.Parameter(change(getattr(module, name).detach())))

    return changing


class Own(Tensor):
    """Somebody's."""


PARAMETERS: dict[str, Any] = {
    "a weight of a class of its own": changed("attention.out", "weight", lambda w: Own(w)),
    "a sign to be changed": changed("attention.out", "weight", torch._neg_view),
    "a weight of one axis": changed("attention.out", "weight", lambda w: w[0].clone()),
    "a weight of fewer rows": changed("attention.out", "weight", lambda w: w[1:].clone()),
    "a weight of one row": changed("attention.out", "weight", lambda w: w[:1].clone()),
    "a weight of fewer columns": changed("feed_forward.up", "weight", lambda w: w[:, 1:].clone()),
    "a last weight of one axis": changed("feed_forward.down", "weight", lambda w: w[0].clone()),
    "a weight by columns": changed("attention.out", "weight", lambda w: w.t()),
    "a weight of doubles": changed("attention.out", "weight", torch.Tensor.double),
    "a bias for all": changed("attention.out", "bias", lambda b: b[:1].clone()),
    "a bias of two axes": changed("attention.out", "bias", lambda b: b[None]),
    "a bias of doubles": changed("attention_norm", "bias", torch.Tensor.double),
    "a gain for all": changed("attention_norm", "weight", lambda w: w[:1].clone()),
    "a gain of two axes": changed("attention_norm", "weight", lambda w: w[:, None]),
    "no weight": lambda layer: setattr(layer.feed_forward.down, "weight", None),
}


@pytest.mark.parametrize("change", PARAMETERS)
def test_parameters_that_are_set_otherwise(change: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = small()
    PARAMETERS[change](model.layers[1])
    assert as_ever(model, monkeypatch)[:2] in ([], [True, False])


@pytest.mark.parametrize("fields", [{"num_heads": 4}, {"head_size": 24}], ids=str)
@pytest.mark.parametrize("position", ["alibi", "absolute"])
def test_a_layer_with_other_heads(
    position: str, fields: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the first layer makes of its own is not theirs."""
    tables = {} if position == "alibi" else {"num_positions": 64}
    model = small(position=position, **tables)
    model.layers[1] = small(position=position, **tables, **fields).layers[1]
    said: list[Any] = []
    for way in (lambda *given: forward(*given)[0], ordinary):
        with torch.no_grad():
            try:
                said.append(way(model, monkeypatch))
            except InputError as error:
                said.append(str(error))
    found, right = said
    assert found == right if isinstance(right, str) else torch.equal(found, right)


@pytest.mark.parametrize("norm_first", [False, True], ids=["post-norm", "pre-norm"])
def test_no_token(norm_first: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    model = small(norm_first=norm_first)
    with torch.no_grad():
        found, went = forward(model, monkeypatch, ())
    assert found.shape == (0, 32)
    assert went == [False] * 3


def test_lengths_of_a_class_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    model, went = small(), []
    plain = straight_cpu.straight_cpu
    monkeypatch.setattr(
        "pyenc.models.straight.straight_cpu", lambda *a: (went.append(plain(*a)), went[-1])[1]
    )
    with torch.no_grad():
        model.forward_packed(torch.arange(9), torch.tensor([0, 4, 9]).as_subclass(Own))
    assert went == [None] * 3


def test_kernels_that_are_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extension, "missing", lambda: "they are not built")
    with torch.no_grad():
        assert forward(small(), monkeypatch)[1] == [False] * 3


def test_what_may_be_skipped_is_what_was_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    model, heard = small(), []
    kernel = attention_cpu.forward
    monkeypatch.setattr(attention_cpu, "forward", lambda *a: (heard.append(a[5]), kernel(*a))[1])
    with torch.no_grad():
        for model.skip_eps in (0.0, 0.25):
            assert forward(model, monkeypatch)[1] == [True] * 3
    assert heard == [0.0] * 3 + [0.25] * 3


@pytest.mark.parametrize("norm", ["layer", "rms"])
def test_norms_in_full_width_of_what_lies_apart(norm: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = small(qk_norm=True, norm=norm)
    with torch.no_grad():
        found, went = forward(model, monkeypatch)
        assert went == [True] * 3
        assert torch.equal(found, ordinary(model, monkeypatch))


def test_products_that_take_the_ordinary_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """With their activation."""
    model = small()
    with torch.no_grad():
        right = ordinary(model, monkeypatch)
        monkeypatch.setattr(straight_cpu, "product", lambda *_: None)
        found, went = forward(model, monkeypatch)
    assert went == [True] * 3
    torch.testing.assert_close(found, right)


@pytest.mark.parametrize("name", ["terms_for", "sizes_of"])
def test_what_layers_have_in_common_is_made_once(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, made, make = small(), [], getattr(straight_cpu, name)
    monkeypatch.setattr(straight_cpu, name, lambda *a: (made.append(1), make(*a))[1])
    with torch.no_grad():
        assert forward(model, monkeypatch)[1] == [True] * 3
    assert len(made) == 1
