"""Which variants are registered, made and put into an `EncoderConfig`, and which are refused."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pyenc.errors import InputError
from pyenc.models import Encoder, position, register_position
from pyenc.models.rotary import Rotary
from tests.models.own_positions import Blocks, Kerple, registered, shape

__all__ = ["registered"]


@pytest.mark.parametrize("name", ["alibi", "", 3, None])
def test_names_that_are_refused(name: Any) -> None:
    with pytest.raises(InputError, match="the name must be a string other than alibi"):
        register_position(name, Kerple)


def test_a_name_is_one_variants() -> None:
    register_position("kerple", Kerple)
    with pytest.raises(InputError, match=r"'kerple' is .*Kerple already; .*Blocks needs another"):
        register_position("kerple", Blocks)
    with pytest.raises(InputError, match="must be callable"):
        register_position("x", 3)  # type: ignore[arg-type]
    again = type("Kerple", (Kerple,), {"__module__": Kerple.__module__})
    register_position("kerple", again)
    assert type(Encoder(shape()).position_bias) is again


def made(kind: str, value: Any) -> Any:
    """A variant of each kind that has no name of its own."""

    def inner(heads: int) -> nn.Module:
        return Kerple(heads, value)

    class Inner(Kerple):
        def __init__(self, heads: int) -> None:
            super().__init__(heads, value)

    return {
        "partial": partial(Kerple, inner=value),
        "partial of a partial": partial(partial(Kerple, inner=value)),
        "partial of a lambda": partial(lambda heads: Kerple(heads, value)),
        "lambda": lambda heads: Kerple(heads, value),
        "default": lambda heads, inner=value: Kerple(heads, inner),
        "keyword": lambda heads, *, inner=value: Kerple(heads, inner),
        "function": inner,
        "class": Inner,
    }[kind]


KINDS = (
    "partial", "partial of a partial", "partial of a lambda", "lambda", "default", "keyword",
    "function", "class",
)  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_another_variant_without_a_name(kind: str) -> None:
    """The same one made again takes its place; one that does something else is refused."""
    register_position("x", made(kind, 1.0))
    again = made(kind, 1.0)
    register_position("x", again)
    assert position._variants["x"] is again
    with pytest.raises(InputError, match=r"'x' is .* already; .* needs another name"):
        register_position("x", made(kind, 2.0))
    assert position._variants["x"] is again


def test_two_lambdas_are_not_one() -> None:
    register_position("x", lambda heads: Kerple(heads))
    with pytest.raises(InputError, match=r"'x' is .*<lambda> already"):
        register_position("x", lambda heads: Blocks(heads))
    with pytest.raises(InputError, match=r"partial\(.*Kerple, inner=2\) needs another name"):
        register_position("x", partial(Kerple, inner=2))
    register_position("y", partial(Kerple, inner=2))
    with pytest.raises(InputError, match=r"'y' is partial\(.*Kerple, inner=2\) already"):
        register_position("y", partial(Blocks, inner=2))


class Saved(Kerple):
    def __init__(self, heads: int) -> None:
        super().__init__(heads)
        self.register_buffer("steps", torch.zeros(1))


def given(**parameters: Any) -> Any:
    """A variant with parameters of the test's choosing, new ones at every call."""

    def variant(heads: int) -> nn.Module:
        module = Kerple(heads)
        for name, value in parameters.items():
            tensor = value.clone() if isinstance(value, Tensor) else value(module)
            needs = tensor.is_floating_point()
            if not isinstance(tensor, nn.Parameter):
                tensor = nn.Parameter(tensor, requires_grad=needs)
            module.register_parameter(name, tensor)
        return module

    return variant


@pytest.mark.parametrize(
    ("variant", "message"),
    [
        (given(w=torch.tensor([0.0, -torch.inf])), "parameter w is not finite"),
        (given(w=torch.tensor([torch.nan])), "parameter w is not finite"),
        (given(w=torch.arange(3)), "parameter w is torch.int64, and must be of floating point"),
        (given(w=torch.ones(2, dtype=torch.cfloat)), "parameter w is torch.complex64"),
        (given(w=lambda module: module.outer), "outer and w are one parameter"),
        (given(w=lambda module: nn.UninitializedParameter()), "parameter w has no shape yet"),
        (lambda heads: object(), "must give a torch.nn.Module, got object"),
        (lambda heads: nn.Linear(2, 2), "it has no method along"),
        (Saved, "steps would be saved and is no parameter"),
        (lambda heads: 1 / 0, "failed: division by zero"),
    ],
)
def test_variants_that_are_refused(variant: Any, message: str) -> None:
    register_position("other", variant)
    with pytest.raises(InputError, match=message):
        Encoder(shape(position="other", position_fields=()))


def test_each_call_makes_a_module_of_its_own() -> None:
    """One for two layers, or for two encoders, would load as one parameter under two names."""
    lone, weight = Kerple(3), nn.Parameter(torch.ones(3))
    register_position("lone", lambda heads: lone)
    with pytest.raises(InputError, match="gave a module that an encoder or a layer has already"):
        Encoder(shape(position="lone", position_fields=(), position_per_layer=True))
    another = Kerple(3)
    register_position("another", lambda heads: another)
    kept = Encoder(shape(position="another", position_fields=()))
    with pytest.raises(InputError, match=r"'another'.* every call must make one of its own"):
        Encoder(kept.config)
    register_position("tied", given(w=lambda module: weight))
    with pytest.raises(InputError, match="parameter w of layer 1 is layer 0's too"):
        Encoder(shape(position="tied", position_fields=(), position_per_layer=True))


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"position": "alibi", "position_fields": {"a": 1}}, "go with a registered variant"),
        ({"position": "alibi", "position_fields": (), "position_per_layer": True}, "go with a reg"),
        ({"position_fields": {"a": torch.ones(1)}}, "a must be a number, a string"),
        ({"position_fields": {"a": float("inf")}}, "a must be finite"),
        ({"norm_eps": float("nan")}, "norm_eps must be finite and not negative: nan"),
        ({"scale": float("nan")}, "scale must be finite: nan"),
        ({"num_positions": 320}, "num_positions 320 goes with .* beside 'kerple' it must be 0"),
        ({"position_fields": 3}, "must map names to values"),
        ({"relative_buckets": 32}, "not beside alibi or a registered variant"),
        ({"rotary": Rotary(1e4), "hidden_size": 21}, "rotary needs even heads, not 7"),
    ],
)
def test_configs_that_are_refused(more: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        shape(**more)


def test_fields_may_be_given_in_any_order() -> None:
    fields = [("signs", (1, -1)), ("inner", 0.5)]
    assert shape(position_fields=fields) == shape()
    assert hash(shape(position_fields=fields)) == hash(shape())
