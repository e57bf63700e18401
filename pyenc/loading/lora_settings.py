"""`adapter_config.json` of a LoRA adapter: what it says of the change to each weight.

Written by peft; a change is alpha / r * B A (Hu et al., LoRA, arXiv 2106.09685), with r's square
root under `use_rslora` (Kalajdzievski, arXiv 2312.03732), and a length of its own for every row
under `use_dora` (Liu et al., DoRA, arXiv 2402.09353). What else the file may ask for is told apart
by whether it changes an answer: what does is honoured or refused, by its key.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import CheckpointError
from ..models.families import ConfigFile
from .files import ADAPTER, read_json

KIND = "LORA"

HONOURED = (
    "peft_type", "r", "lora_alpha", "use_rslora", "use_dora", "rank_pattern", "alpha_pattern",
    "init_lora_weights", "target_modules", "modules_to_save", "base_model_name_or_path", "revision",
    "exclude_modules", "layers_to_transform", "layers_pattern",
)  # fmt: skip

UNHEARD = (
    # About training alone, or about where things were.
    "task_type", "auto_mapping", "peft_version", "inference_mode", "lora_dropout", "loftq_config",
    "eva_config", "corda_config", "lora_ga_config", "runtime_config", "megatron_config",
    "megatron_core", "ensure_weight_tying",
    # Which biases have changes: the tensors say it.
    "bias", "lora_bias",
    # Of another layer than torch's Linear and Embedding, or of a switch that is refused.
    "fan_in_fan_out", "qalora_group_size",
)  # fmt: skip
"""Keys that change no answer."""

NONE: tuple[Any, ...] = (None, False, {}, [], "")
"""Of any other key: that it asks for nothing."""

STARTS: tuple[Any, ...] = (True, False, "gaussian", "eva", "orthogonal")
"""How A and B began, where the weights beside them stayed as they were. Of other beginnings (PiSSA,
OLoRA, LoftQ) the weights were changed too, and the adapter does not hold how."""

FROM_DEFAULT = 8
"""Of `r` and `lora_alpha`, where the file does not say them."""

ALL = "all-linear"
"""In the place of `target_modules`: as many as the trained model had."""

LARGEST = 3e38
"""Of `lora_alpha`: what a weight is added up in holds no more."""


@dataclass(frozen=True)
class LoraSettings:
    """What one adapter's file says."""

    path: Path
    base: str | None
    """What it changes: a folder or a Hub name."""
    revision: str | None
    """Of the base's."""
    rank: int
    alpha: float
    ranks: Mapping[str, int]
    """By pattern of a module's path, before `rank`."""
    alphas: Mapping[str, float]
    rooted: bool
    """Whether alpha is divided by the root of the rank, and not by the rank."""
    by_length: bool
    """Whether rows have lengths of their own: DoRA."""
    targets: tuple[str, ...] | str | None
    """What the paths of changed modules end with, or a pattern of them; None: not said."""
    whole: tuple[str, ...]
    """What the paths of modules end with that are saved whole."""
    excluded: tuple[str, ...] | str
    """What the paths of modules end with that have no change after all, or a pattern of them."""
    layers: tuple[int, ...]
    """Numbers of the layers that have changes; none: all."""
    layers_named: tuple[str, ...]
    """Patterns of what stands before such a number in a path; none: any word."""

    @property
    def some_alone(self) -> bool:
        """Whether not all of the targets have changes: some are excluded, or of some layers
        alone."""
        return bool(self.excluded or self.layers)

    def rank_of(self, module: str) -> int:
        """Of the change to a module, by its path in the model that was trained."""
        pattern = _pattern(self.ranks, module)
        return self.rank if pattern is None else self.ranks[pattern]

    def scaling_of(self, module: str) -> float:
        """What B A is multiplied by."""
        pattern = _pattern(self.alphas, module)
        alpha = self.alpha if pattern is None else self.alphas[pattern]
        rank = self.rank_of(module)
        return alpha / (math.sqrt(rank) if self.rooted else rank)

    def leaves_out(self, module: str) -> str | None:
        """The key by which the file does not mean this module, as peft reads it; None: it does."""
        if isinstance(self.excluded, str):
            excluded = re.fullmatch(self.excluded, module) is not None
        else:
            excluded = any(ends(module, end) for end in self.excluded)
        if excluded:
            return "exclude_modules"
        if self.targets is None or self.targets == ALL:
            return None
        if isinstance(self.targets, str):
            return None if re.fullmatch(self.targets, module) else "target_modules"
        if module in self.targets:
            return None
        if not any(ends(module, end) for end in self.targets):
            return "target_modules"
        # Of layers peft asks beside a list alone.
        if self.layers and self._layer(module) not in self.layers:
            return "layers_to_transform"
        return None

    def _layer(self, module: str) -> int | None:
        """The first number of a path, behind one of the words."""
        words = self.layers_named or (r"[^.]*",)
        begin = r"(?:^|.*?\.)" if self.layers_named else r".*?\."
        found = (re.match(rf"{begin}{word}\.(\d+)\.", module) for word in words)
        number = next((match for match in found if match), None)
        return None if number is None else int(number.groups()[-1])


def ends(module: str, end: str) -> bool:
    """Whether a module's path ends with these words."""
    return module == end or module.endswith("." + end)


def _pattern(patterns: Mapping[str, Any], module: str) -> str | None:
    """The first of the patterns that a module's path ends with, from the beginning of a word."""
    return next((p for p in patterns if re.match(_at_the_end(p), module)), None)


def _at_the_end(pattern: str) -> str:
    return rf"(.*\.)?({pattern})$"


def read_settings(folder: Path) -> LoraSettings:
    """The settings of the adapter in a folder.

    Raises:
        CheckpointError: the file is missing or damaged, is not of LoRA, or asks for what is not
            served; the message names the key.
    """
    path = folder / ADAPTER
    values = read_json(path)
    kind = values.get("peft_type")
    if kind != KIND:
        raise CheckpointError(
            f"{path}: peft_type {kind!r:.40} is not served; served: {KIND!r}, and of others "
            "merge_and_unload() of the model in peft, then save_pretrained(), where it has that"
        )
    for key, value in values.items():
        if key not in (*HONOURED, *UNHEARD) and value not in NONE:
            raise CheckpointError(
                f"{path}: {key} is {value!r:.80}, which is not served: it may change the vectors; "
                "served: LoRA, rsLoRA and DoRA of linear layers and embeddings"
            )
    start = values.get("init_lora_weights", True)
    if start not in STARTS:
        raise CheckpointError(
            f"{path}: init_lora_weights is {start!r:.40}, which changed the base's own weights "
            "too; expected an adapter saved with path_initial_model_for_weight_conversion, or "
            "merge_and_unload() of the model in peft, then save_pretrained()"
        )
    file = ConfigFile(str(path), {key: v for key, v in values.items() if v is not None})
    ranks, alphas = file.section("rank_pattern"), file.section("alpha_pattern")
    for section in (ranks, alphas):
        _check_patterns(section)
    _check_alphas(file, ["lora_alpha"])
    _check_alphas(alphas, alphas.values)
    base, revision = (
        None if values.get(key) is None else file.text(key, "")
        for key in ("base_model_name_or_path", "revision")
    )
    return LoraSettings(
        path=path,
        base=base,
        revision=revision or None,
        rank=file.size("r", FROM_DEFAULT),
        alpha=file.number("lora_alpha", FROM_DEFAULT),
        ranks={key: ranks.size(key) for key in ranks.values},
        alphas={key: alphas.number(key, 0.0) for key in alphas.values},
        rooted=file.flag("use_rslora", False),
        by_length=file.flag("use_dora", False),
        targets=_modules(file, "target_modules"),
        whole=_strings(file, "modules_to_save"),
        excluded=_modules(file, "exclude_modules") or (),
        layers=_layers(file),
        layers_named=_layers_named(file),
    )


def _check_alphas(section: ConfigFile, keys: Iterable[str]) -> None:
    for key in keys:
        if (value := section.number(key, FROM_DEFAULT)) > LARGEST:
            raise CheckpointError(f"{section.path}: {key} is {value!r}, more than float32 holds")


def _check_patterns(section: ConfigFile) -> None:
    for pattern in section.values:
        _check_pattern(section.path, pattern, _at_the_end(pattern))


def _check_pattern(where: str, said: str, compiled: str) -> None:
    try:
        re.compile(compiled)
    except (re.error, OverflowError, RecursionError) as error:
        raise CheckpointError(f"{where}: {said!r:.80} is no pattern: {error}") from None


def _modules(file: ConfigFile, key: str) -> tuple[str, ...] | str | None:
    said = file.values.get(key)
    if isinstance(said, str):
        if said != ALL or key != "target_modules":
            _check_pattern(f"{file.path}: {key}", said, said)
        return said
    return _strings(file, key) or None


def _layers(file: ConfigFile) -> tuple[int, ...]:
    said = file.values.get("layers_to_transform", [])
    numbers = [said] if type(said) is int else said
    if not isinstance(numbers, list) or not all(type(n) is int and n >= 0 for n in numbers):
        raise CheckpointError(
            f"{file.path}: layers_to_transform must be a layer's number, a list of them or null, "
            f"got {said!r:.80}"
        )
    return tuple(numbers)


def _layers_named(file: ConfigFile) -> tuple[str, ...]:
    said = _modules(file, "layers_pattern") or ()
    words = (said,) if isinstance(said, str) else said
    for word in words:
        _check_pattern(f"{file.path}: layers_pattern", word, rf"{word}\.(\d+)\.")
    return words


def _strings(file: ConfigFile, key: str) -> tuple[str, ...]:
    said = file.values.get(key, [])
    if not isinstance(said, list) or not all(isinstance(end, str) for end in said):
        other = "" if key == "modules_to_save" else ", a string"
        raise CheckpointError(
            f"{file.path}: {key} must be a list of strings{other} or null, got {said!r:.80}"
        )
    return tuple(said)
