"""Rotary positions as transformers' language models say them: `rope_theta` and, where they were
made to read longer texts, a scaling (`rope_scaling`, or `rope_parameters` of transformers 5)."""

from __future__ import annotations

from ...errors import CheckpointError, InputError
from ..rotary import Rotary
from ..rotary_scaling import RotaryScaling, grown
from .config_file import ConfigFile

THETA, WHOLE, TRAINED = "rope_theta", "partial_rotary_factor", "original_max_position_embeddings"
ALWAYS = {THETA, "rope_type", "type", WHOLE}

KEYS: dict[str, tuple[str, ...]] = {
    "default": (),
    "linear": ("factor",),
    "llama3": ("factor", TRAINED, "low_freq_factor", "high_freq_factor"),
    "yarn": (
        "factor", TRAINED, "attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim",
        "truncate",
    ),
}  # fmt: skip
"""`rope_type` -> what belongs to it."""


def rotary(config: ConfigFile, unsaid: float | None, story: str = "") -> Rotary:
    """By `rope_theta`, as older files spell it, or `rope_parameters`, as transformers 5.

    Args:
        config: `config.json`.
        unsaid: the base where the file does not say it; None: it must.
        story: for the error of a file that does not.

    Raises:
        CheckpointError: two spellings of a setting differ, or a scaling is not served or not whole.
    """
    sections = [config.section(key) for key in ("rope_parameters", "rope_scaling")]
    said = [section for section in sections if section.values]
    if len(said) == 2 and said[0].values != said[1].values:
        raise CheckpointError(
            f"{config.path}: rope_parameters is {dict(said[0].values)!r} and rope_scaling is "
            f"{dict(said[1].values)!r}, two spellings of one setting"
        )
    section = (said or sections)[0]
    config.require(WHOLE, (1.0, None), None, "pyenc turns whole heads")
    kind = section.text(section.spelled("rope_type", "type"), "default")
    strange = section.values.keys() - ALWAYS - set(KEYS.get(kind, ()))
    if kind not in KEYS or strange or section.values.get(WHOLE, 1.0) != 1.0:
        raise CheckpointError(
            f"{section.path}: {dict(section.values)!r} is not served; served: rope_theta with "
            f'rope_type "default", "linear", "llama3" or "yarn" and what belongs to it'
        )
    theta, outer = section.values.get(THETA), config.values.get(THETA)
    if theta is not None and outer is not None and theta != outer:
        raise CheckpointError(
            f"{config.path}: rope_theta is {outer!r}, and {theta!r} in {section.path}, two "
            "spellings of one setting"
        )
    if theta is None and outer is None and unsaid is None:
        raise CheckpointError(f"{config.path}: rope_theta is missing: {story}")
    place = section if THETA in section.values else config
    base = place.positive(THETA, unsaid or 0.0)
    if kind == "default":
        return Rotary(base)
    try:
        return Rotary(base, scaling=_scaling(config, section, kind))
    except InputError as error:
        raise CheckpointError(f"{section.path}: {error}") from error


def linear(section: ConfigFile) -> RotaryScaling:
    """Every position divided by `factor`, which has no default.

    Raises:
        CheckpointError: `factor` is missing, or not a positive number.
    """
    _need(section, "linear", "factor")
    return RotaryScaling("linear", section.positive("factor", 1.0))


def _need(section: ConfigFile, kind: str, *keys: str) -> None:
    for key in keys:
        if section.values.get(key) is None:
            raise CheckpointError(f"{section.path}: {key} is missing; rope_type {kind!r} needs one")


def _scaling(config: ConfigFile, section: ConfigFile, kind: str) -> RotaryScaling:
    if kind == "linear":
        return linear(section)
    trained = _trained(config, section)
    if kind == "llama3":
        _need(section, kind, "factor", "low_freq_factor", "high_freq_factor")
        return RotaryScaling(
            "llama3",
            section.positive("factor", 1.0),
            trained,
            low_freq_factor=section.positive("low_freq_factor", 1.0),
            high_freq_factor=section.positive("high_freq_factor", 4.0),
        )
    if section.values.get("factor") is None:
        times = config.size("max_position_embeddings") / trained
    else:
        times = section.positive("factor", 1.0)
    return RotaryScaling(
        "yarn",
        times,
        trained,
        beta_fast=_or(section, "beta_fast", 32.0),
        beta_slow=_or(section, "beta_slow", 1.0),
        truncate=section.flag("truncate", True),
        attention_factor=_attention_factor(section, times),
    )


def _trained(config: ConfigFile, section: ConfigFile) -> int:
    """Beside the scaling or in it; where neither says it, the texts are as long as ever."""
    outer, inner = config.values.get(TRAINED), section.values.get(TRAINED)
    if outer is not None and inner is not None and outer != inner:
        raise CheckpointError(
            f"{config.path}: {TRAINED} is {outer!r}, and {inner!r} in {section.path}, two "
            "spellings of one setting"
        )
    if inner is not None:
        return section.size(TRAINED)
    if outer is not None:
        return config.size(TRAINED)
    return config.size("max_position_embeddings")


def _or(section: ConfigFile, key: str, default: float) -> float:
    """A number, of which null and 0 are the default too."""
    said = None if section.values.get(key) is None else section.number(key, default)
    return said or default


def _attention_factor(section: ConfigFile, factor: float) -> float | None:
    if section.values.get("attention_factor") is not None:
        return section.positive("attention_factor", 1.0)
    shares = [_or(section, key, 0.0) for key in ("mscale", "mscale_all_dim")]
    if not all(shares):
        return None
    return grown(factor, shares[0]) / grown(factor, shares[1])
