"""Layers of two kinds, as `config.json` describes them: which see a window, and how each turns."""

from __future__ import annotations

from ...errors import CheckpointError
from ..rotary import Rotary
from ..rotary_scaling import RotaryScaling
from .config_file import UNSCALED, ConfigFile
from .rope import WHOLE, linear

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


def refuse_windows(config: ConfigFile, layers: int, family: str) -> None:
    """`layer_types` of a family whose layers see all."""
    if any(listed(config, layers) or ()):
        raise CheckpointError(
            f"{config.path}: layer_types has {SLIDING!r}, but {family}'s layers have no window; "
            f"expected {FULL!r} alone, or no layer_types"
        )


def every(config: ConfigFile, key: str, default: int) -> int:
    """Layers to one that sees all."""
    number = config.integer(key, default)
    if number < 1:
        raise CheckpointError(f"{config.path}: {key} must be at least 1, got {number}")
    return number


def rotary_of(
    config: ConfigFile, kind: str, key: str, default: float, family: str, scaling_key: str = ""
) -> Rotary | None:
    """Of one kind of layer, by `rope_parameters` or by a key of its own; None where that base is
    null: of the other kind.

    Args:
        config: `config.json`.
        kind: of the layers, one of `KINDS`.
        key: of the base, in files without `rope_parameters`.
        default: the base where the file does not say it.
        family: whose file it is, for its errors.
        scaling_key: of the scaling, in such files; "" where they have none.
    """
    config.require(WHOLE, (1.0, None), None, "pyenc turns whole heads")
    kinds = config.section("rope_parameters")
    if unknown := sorted(kinds.values.keys() - set(KINDS)):
        raise CheckpointError(
            f"{kinds.path}: {', '.join(unknown)} is unknown; {family} has rope_theta for each of "
            f"{', '.join(KINDS)}"
        )
    parameters = kinds.section(kind)
    scaling = _scaling(config, parameters, scaling_key)
    if parameters.values.get("rope_theta") is not None:
        return Rotary(parameters.positive("rope_theta", default), scaling=scaling)
    if key in config.values and config.values[key] is None:
        return None
    return Rotary(config.positive(key, default), scaling=scaling)


def _scaling(config: ConfigFile, parameters: ConfigFile, key: str) -> RotaryScaling | None:
    """ "linear", or none: of others transformers reads a part beside the kinds of layers."""
    where, said = parameters, {k: v for k, v in parameters.values.items() if k != "rope_theta"}
    if key and config.values.get(key) not in (None, {}):
        where = config.section(key)
        other = dict(where.values)
        if other in UNSCALED:
            other = {"rope_type": "default"}
        if said not in ({}, other):
            raise CheckpointError(
                f"{config.path}: {key} is {dict(where.values)!r}, and {parameters.path} is "
                f"{said!r}, two spellings of one setting"
            )
        said = other
    kind = where.text("rope_type", "default")  # transformers 5 passes over "type" here
    allowed = {"rope_type"} | ({"factor"} if kind == "linear" else set())
    if kind not in ("default", "linear") or said.keys() - allowed:
        raise CheckpointError(
            f"{where.path}: {dict(where.values)!r} is not served; served: rope_theta with "
            'rope_type "default", or "linear" and its factor'
        )
    if kind == "default":
        return None
    return linear(where)
