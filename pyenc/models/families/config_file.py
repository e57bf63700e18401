"""A checkpoint's `config.json`, read with errors that name file and key."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ...errors import CheckpointError, UnknownArchitectureError
from .parts import Names, there

ACTIVATION_NAMES = {
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_python_tanh": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_accurate": "gelu_tanh",
    "silu": "silu",
    "swish": "silu",
    "relu": "relu",
}
"""`hidden_act` of Hugging Face configs -> our name."""

LARGEST = 2**31
"""No size in a `config.json` comes near it."""

UNSCALED: tuple[Any, ...] = (None, {}, {"rope_type": "default"}, {"type": "default"})
"""What `rope_scaling` may be where positions turn as they are."""


@dataclass(frozen=True)
class ConfigFile:
    """A parsed `config.json`, or an object inside of it."""

    path: str
    values: Mapping[str, Any]

    def integer(self, key: str, default: int | None = None, least: int = 0) -> int:
        value = self.values.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value < LARGEST:
            raise CheckpointError(
                f"{self.path}: {key} must be a whole number from {least} to {LARGEST - 1}, got "
                f"{value!r}"
            )
        return value

    def size(self, key: str, default: int | None = None) -> int:
        """A whole number of which there is at least one."""
        return self.integer(key, default, 1)

    def number(self, key: str, default: float) -> float:
        value = self.values.get(key, default)
        # Python compares exactly: a whole number too large for a float is larger than any.
        if (
            isinstance(value, bool)
            or not isinstance(value, (int, float))
            or not 0 <= value <= sys.float_info.max
        ):
            raise CheckpointError(
                f"{self.path}: {key} must be a number, finite and >= 0, got {value!r}"
            )
        return float(value)

    def positive(self, key: str, default: float) -> float:
        if not (value := self.number(key, default)):
            raise CheckpointError(f"{self.path}: {key} must be positive, got 0")
        return value

    def text(self, key: str, default: str) -> str:
        value = self.values.get(key, default)
        if not isinstance(value, str):
            raise CheckpointError(f"{self.path}: {key} must be a string, got {value!r}")
        return value

    def flag(self, key: str, default: bool) -> bool:
        value = self.values.get(key, default)
        if not isinstance(value, bool):
            raise CheckpointError(f"{self.path}: {key} must be true or false, got {value!r}")
        return value

    def section(self, key: str) -> ConfigFile:
        """An object inside of the file; null and absent are empty."""
        value = self.values.get(key)
        if value is not None and not isinstance(value, dict):
            raise CheckpointError(f"{self.path}: {key} must be an object or null, got {value!r}")
        return ConfigFile(f"{self.path}: {key}", value or {})

    def spelled(self, *keys: str) -> str:
        """Which of several spellings of one setting is there: the first, where none is.

        Raises:
            CheckpointError: two are there and differ.
        """
        there = [key for key in keys if self.values.get(key) is not None]
        for key in there[1:]:
            if self.values[key] != self.values[there[0]]:
                raise CheckpointError(
                    f"{self.path}: {there[0]} is {self.values[there[0]]!r} and {key} is "
                    f"{self.values[key]!r}, two spellings of one setting"
                )
        return there[0] if there else keys[0]

    def says(self, model_types: tuple[str, ...], classes: tuple[str, ...]) -> bool:
        """Whether it is of one of these `model_type`s, or, where it has none, of a class whose name
        begins so: files older than that key name the class alone."""
        kind = self.values.get("model_type")
        if kind is not None:
            return kind in model_types
        named = self.values.get("architectures") or []
        if not isinstance(named, list) or not all(isinstance(name, str) for name in named):
            raise CheckpointError(
                f"{self.path}: architectures must be a list of class names, got {named!r:.80}"
            )
        return any(name.startswith(classes) for name in named)

    def activation(self, key: str = "hidden_act", default: str = "gelu") -> str:
        name = self.text(key, default)
        if name not in ACTIVATION_NAMES:
            raise CheckpointError(
                f"{self.path}: {key} {name!r} is unknown; known: {', '.join(ACTIVATION_NAMES)}"
            )
        return ACTIVATION_NAMES[name]

    def require(self, key: str, allowed: tuple[Any, ...], default: Any, why: str) -> None:
        """Refuse a checkpoint whose config contradicts the family its tensors belong to."""
        value = self.values.get(key, default)
        if value not in allowed:
            raise UnknownArchitectureError(
                f"{self.path}: {key} is {value!r}, but {why} (expected {allowed[0]!r})"
            )


def own_head_size(config: ConfigFile) -> int | None:
    """Channels of a head where `config.json` says them, as transformers 5 writes for some."""
    return None if config.values.get("head_dim") is None else config.size("head_dim")


def common_fields(config: ConfigFile, names: Names) -> dict[str, Any]:
    """The fields that every BERT-descended `config.json` spells alike."""
    return {
        "vocab_size": config.size("vocab_size"),
        "hidden_size": config.size("hidden_size"),
        "num_layers": config.size("num_hidden_layers"),
        "num_heads": config.size("num_attention_heads"),
        "intermediate_size": config.size("intermediate_size"),
        "type_vocab_size": config.integer("type_vocab_size", 2),
        "norm_eps": config.number("layer_norm_eps", 1e-12),
        "hidden_dropout": config.number("hidden_dropout_prob", 0.1),
        "pooler": there(names, "pooler.dense"),
    }


def require_unscaled(config: ConfigFile, why: str) -> None:
    """Refuse a `rope_scaling` that scales, and one that says "default" beside a `rope_parameters`
    that says more: transformers puts the one over the other, or in its place.

    Args:
        config: the whole file.
        why: what is served instead of a scaling.
    """
    config.require("rope_scaling", UNSCALED, None, why)
    said, parameters = config.values.get("rope_scaling"), config.section("rope_parameters").values
    if said and parameters and dict(parameters) != said:
        raise CheckpointError(
            f"{config.path}: rope_scaling is {said!r}, and rope_parameters is "
            f"{dict(parameters)!r}, two spellings of one setting"
        )
