"""`register_position`: a bias of one's own as an encoder's positions."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any
from weakref import WeakValueDictionary

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from ..errors import InputError
from ..ops.attention.own_object import DistanceBias, ScoreBias, ScoreMap
from ..ops.validation import FLOATS
from .variant import Variant, called, same_variant

POSITIONS = ("alibi", "absolute", "rotary", "relative", "disentangled")
"""What encoders have by themselves."""

Fields = tuple[tuple[str, Any], ...]
"""Names and values in the order of the names; values are scalars and tuples of them."""

_variants: dict[str, Variant] = {}
_given: WeakValueDictionary[int, nn.Module] = WeakValueDictionary()
"""What variants have given, by `id`, as long as it is in use."""

_shapes_alone: ContextVar[bool] = ContextVar("shapes_alone", default=False)


def register_position(name: str, variant: Variant) -> None:
    """Make `EncoderConfig(position=name)` build a bias of one's own.

    >>> pyenc.models.register_position("kerple", Kerple)
    >>> config = EncoderConfig(..., position="kerple", position_fields={"kind": "log"})

    An encoder then calls `variant(num_heads, **position_fields)`, once, or once a layer
    (`position_per_layer`). It gives a `torch.nn.Module` with `along`, `block` or `score` (see
    `pyenc.ops.attention`), whose parameters are the encoder's: trained, saved, and loaded again
    with it; of floating point, finite, and new at every call. What is no parameter must follow from
    the fields, and not be saved: buffers with `persistent=False`. Those are made anew when a
    checkpoint is loaded, in float32 where the variant says no dtype, whatever dtype the parameters
    are loaded in; an encoder that was cast, by `encoder.bfloat16()` say, has them cast. What a
    module keeps for itself is named with an underscore. Whoever loads the checkpoint registers the
    variant first.

    Args:
        name: what `config.json` will say; none of the built-in positions.
        variant: a class or function; pickling an encoder needs it at the top of a module.

    Raises:
        InputError: the name is a built-in position's or another variant's, or nothing is callable.
            The same one defined again takes the place of what it was; of a lambda, a partial or
            what a function defines, that is one with the same code and values.
    """
    if not isinstance(name, str) or not name or name in POSITIONS:
        raise InputError(
            f"register_position: the name must be a string other than {', '.join(POSITIONS)}, got "
            f"{name!r}"
        )
    if not callable(variant):
        raise InputError(f"register_position: {name!r} must be callable, got {variant!r:.80}")
    known = _variants.get(name)
    # The same one defined again, by a cell of a notebook say, takes the place of what it was.
    if known is not None and not same_variant(known, variant):
        other = "this other one" if called(known) == called(variant) else called(variant)
        raise InputError(
            f"register_position: {name!r} is {called(known)} already; {other} needs another name"
        )
    _variants[name] = variant


def is_registered(name: str) -> bool:
    """Whether a position is a registered variant's."""
    return name in _variants


def check_position(name: Any) -> None:
    """A position is built in or registered, or an `InputError` says what is known."""
    if name in POSITIONS or name in _variants:
        return
    known = ", ".join((*POSITIONS, *sorted(_variants)))
    raise InputError(
        f"EncoderConfig: unknown position {name!r}; known: {known}. A variant of one's own is made "
        f"known first: pyenc.models.register_position({name!r}, ...)"
    )


def check_fields(fields: Any) -> Fields:
    """Fields of a variant, a mapping or pairs, as `config.json` can hold them."""
    try:
        named = dict(fields)
    except (TypeError, ValueError) as error:
        raise InputError(
            f"EncoderConfig: position_fields must map names to values, got {fields!r:.80}"
        ) from error
    for key, value in named.items():
        if not isinstance(key, str) or not key.isidentifier():
            raise InputError(f"EncoderConfig: position_fields: {key!r} is no name of an argument")
        named[key] = _value(key, value)
    return tuple(sorted(named.items()))


def _value(key: str, value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return tuple(_value(key, x) for x in value)
    if isinstance(value, float) and not math.isfinite(value):
        raise InputError(f"EncoderConfig: position_fields: {key} must be finite, got {value}")
    if value is None or type(value) in (bool, int, float, str):
        return value
    raise InputError(
        f"EncoderConfig: position_fields: {key} must be a number, a string, true, false, None or a "
        f"list of those, got {type(value).__name__}"
    )


def make_position(name: str, num_heads: int, given: Fields) -> nn.Module:
    """The module of a registered variant, with values also where an encoder is built on meta
    (`shapes_alone`: without).

    Args:
        name: `EncoderConfig.position`; num_heads and given, its `position_fields`, as there.

    Raises:
        InputError: the variant refuses its fields, or gives what an encoder cannot use.
    """
    check_position(name)
    fields: Mapping[str, Any] = dict(given)
    said = ", ".join([str(num_heads), *(f"{k}={v!r}" for k, v in fields.items())])
    story = f"position {name!r}: {called(_variants[name])}({said})"
    meta = torch.get_default_device().type == "meta"
    tried = [False, True] if meta and _shapes_alone.get() else [meta]
    for valued in tried:
        try:
            with _making(meta, valued):
                module = _variants[name](num_heads, **fields)
            break
        except Exception as error:
            if valued is not tried[-1]:
                continue  # it reads the values of what it makes
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise InputError(f"{story} failed: {reason:.300}") from error
    if not isinstance(module, nn.Module):
        raise InputError(f"{story} must give a torch.nn.Module, got {type(module).__name__}")
    if not isinstance(module, (DistanceBias, ScoreBias, ScoreMap)):
        raise InputError(f"{story}: it has no method along(offsets), block(i, j) or score(s, i, j)")
    if _given.get(id(module)) is module:
        raise InputError(
            f"{story} gave a module that an encoder or a layer has already; every call must make "
            "one of its own"
        )
    _check_parameters(story, module)
    kept = set(module.state_dict()) - {key for key, _ in module.named_parameters()}
    if kept:
        raise InputError(
            f"{story}: {', '.join(sorted(kept))} would be saved and is no parameter; what follows "
            "from the fields is a buffer with persistent=False"
        )
    _given[id(module)] = module
    return module


@contextmanager
def _making(meta: bool, valued: bool) -> Iterator[None]:
    """How a module is made for an encoder on meta: without drawing random numbers, in float32
    whatever torch's default is, and `valued`, on the CPU: what follows from the fields has values,
    and nothing in a checkpoint gives them again."""
    if not meta:
        yield
        return
    default = torch.get_default_dtype()
    with torch.random.fork_rng([]), torch.device("cpu" if valued else "meta"):
        if default == torch.float32:
            yield
            return
        torch.set_default_dtype(torch.float32)
        try:
            yield
        finally:
            torch.set_default_dtype(default)


@contextmanager
def shapes_alone() -> Iterator[None]:
    """Encoders on meta are made wholly so, their positions too: nothing that a file says takes
    memory before the sizes are compared. A variant that cannot be made there is made on the CPU."""
    token = _shapes_alone.set(True)
    try:
        yield
    finally:
        _shapes_alone.reset(token)


def _check_parameters(story: str, module: nn.Module) -> None:
    """Parameters are what a checkpoint holds and loading takes, or an `InputError` names one."""
    seen: dict[int, str] = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        first = seen.setdefault(id(parameter), name)
        if first != name:
            raise InputError(
                f"{story}: {first} and {name} are one parameter, which a checkpoint would hold "
                "once; it must have one name"
            )
        if is_lazy(parameter):
            raise InputError(f"{story}: parameter {name} has no shape yet; it must have one")
        if parameter.dtype not in FLOATS:
            raise InputError(
                f"{story}: parameter {name} is {parameter.dtype}, and must be of floating point, "
                "as weights are; what is no weight is a buffer with persistent=False"
            )
        # Nothing is known of what has no values.
        if parameter.device.type != "meta" and not bool(torch.isfinite(parameter).all()):
            raise InputError(
                f"{story}: parameter {name} is not finite, which no checkpoint may be; -inf of a "
                "mask is put where it is used, by along, block or score"
            )


def check_apart(name: str, modules: list[nn.Module | None]) -> None:
    """The modules of `position_per_layer` share no parameter, or an `InputError` names it."""
    owners: dict[int, int] = {}
    for layer, module in enumerate(modules):
        for key, parameter in () if module is None else module.named_parameters():
            first = owners.setdefault(id(parameter), layer)
            if first != layer:
                raise InputError(
                    f"position {name!r}: parameter {key} of layer {layer} is layer {first}'s too; "
                    "with position_per_layer each must have its own, without it all share one"
                )


def place_buffers(encoder: nn.Module, device: torch.device) -> None:
    """Buffers of registered variants, made on the CPU for an encoder on meta, to its device."""
    for module in encoder.modules():
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = buffer.to(device)
