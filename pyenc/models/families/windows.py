"""Layers of two kinds, as `config.json` describes them: which see a window, and how each turns."""

from __future__ import annotations

from ...errors import CheckpointError
from ..rotary import Rotary
from .config_file import ConfigFile

FULL, SLIDING = KINDS = ("full_attention", "sliding_attention")


def listed(config: ConfigFile, layers: int) -> tuple[bool, ...] | None:
    """Which layers see a window, by `layer_types`; None without that list."""
    types = config.values.get("layer_types")
    if types is None:
        return None
    if not isinstance(types, list) or len(types) != layers:
        count = len(types) if isinstance(types, list) else repr(types)
        raise CheckpointError(
            f"{config.path}: layer_types must be a list of {layers} layers, got {count}"
        )
    for i, kind in enumerate(types):
        if kind not in KINDS:
            raise CheckpointError(
                f"{config.path}: layer_types[{i}] {kind!r} is unknown; known: {', '.join(KINDS)}"
            )
    return tuple(kind == SLIDING for kind in types)


def every(config: ConfigFile, key: str, default: int) -> int:
    """Layers to one that sees all."""
    number = config.integer(key, default)
    if number < 1:
        raise CheckpointError(f"{config.path}: {key} must be at least 1, got {number}")
    return number


def rotary_of(
    config: ConfigFile, kind: str, key: str, default: float, family: str
) -> Rotary | None:
    """Of one kind of layer, by `rope_parameters` or by a key of its own; None where that base is
    null: of the other kind."""
    kinds = config.section("rope_parameters")
    if unknown := sorted(kinds.values.keys() - set(KINDS)):
        raise CheckpointError(
            f"{kinds.path}: {', '.join(unknown)} is unknown; {family} has rope_theta for each of "
            f"{', '.join(KINDS)}"
        )
    parameters = kinds.section(kind)
    rope_type = parameters.text("rope_type", "default")
    strange = set(parameters.values) - {"rope_theta", "rope_type"}
    if rope_type != "default" or strange:
        raise CheckpointError(
            f"{parameters.path}: {dict(parameters.values)!r} is not served; served: rope_theta "
            'with rope_type "default"'
        )
    if parameters.values.get("rope_theta") is not None:
        return Rotary(parameters.positive("rope_theta", default))
    if key in config.values and config.values[key] is None:
        return None
    return Rotary(config.positive(key, default))
