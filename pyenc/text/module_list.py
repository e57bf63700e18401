"""`modules.json`: the steps of a sentence-transformers model, in order, by class and folder."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import CheckpointError
from ..loading import read_json
from ..loading.files import folder_below
from ..loading.jina_v5 import is_of_tasks
from ..models.families.qwen import PPLX_TYPE

JINAS = "custom_st.Transformer"
"""The first module of jina-embeddings-v3 and -v5, a file of their repositories: as
sentence-transformers' own, but for the adapter of a task."""

PPLXS = "st_quantize.FlexibleQuantizer"
"""The last module of pplx-embed, a file of its repository, which has no weights and no settings."""

KINDS = "sentence_transformers.models."
"""How the classes were called for years; newer files name the modules they moved to since."""

PACKAGE = "sentence_transformers."
"""Whose classes are known: another package's of the same last name computes what it likes."""


def kind_of(module: Mapping[str, Any]) -> str:
    """The class of a module without the path to it; of another package's class all of it."""
    name = str(module["type"])
    return name.rpartition(".")[2] if name.startswith(PACKAGE) else name


def read_modules(path: Path) -> list[dict[str, Any]]:
    """The modules that a `modules.json` lists, in its order, which is the one that counts; their
    paths as those of files begin.

    Raises:
        CheckpointError: it is no list of modules, its numbers contradict its order, two modules
            have one name, or a folder lies outside.
    """
    try:
        modules: list[dict[str, Any]] = list(json.loads(path.read_text("utf-8")))
        numbers = [int(module.get("idx", number)) for number, module in enumerate(modules)]
        for module in modules:
            where, kind = module.get("path", ""), module["type"]
            if not isinstance(where, str) or not isinstance(kind, str):
                raise TypeError("type and path must be strings")
            if not (path.parent / where).resolve().is_relative_to(path.parent.resolve()):
                raise ValueError(f"path {where!r} leads out of the folder")
            module["path"] = folder_below(where)
    except (
        ValueError, KeyError, TypeError, AttributeError, OverflowError, OSError, RecursionError,
    ) as error:  # fmt: skip
        raise CheckpointError(f"{path}: not a readable list of modules: {error!r}") from error
    for module in modules:
        if module["type"] != JINAS:
            continue
        config = read_json(path.parent / module["path"] / "config.json")
        if has_tasks(config) or is_of_tasks(config):
            module["type"] = KINDS + "Transformer"
    _check_pplx(path, modules)
    if numbers != sorted(numbers):
        raise CheckpointError(
            f"{path}: the modules' idx, {numbers}, contradict the order in which they are listed, "
            "which is the one that sentence-transformers goes by; expected them in one order"
        )
    names = [str(module["name"]) for module in modules if "name" in module]
    for name in names:
        if names.count(name) > 1:
            raise CheckpointError(
                f"{path}: {names.count(name)} modules are named {name!r}, of which "
                "sentence-transformers keeps the last alone; expected a name for each"
            )
    return modules


def _check_pplx(path: Path, modules: list[dict[str, Any]]) -> None:
    """The class is known of pplx-embed's layers alone, and has no settings."""
    for module in modules:
        if module["type"] != PPLXS:
            continue
        encoder = next((m["path"] for m in modules if kind_of(m) == "Transformer"), "")
        kind = read_json(path.parent / encoder / "config.json").get("model_type")
        if kind != PPLX_TYPE:
            raise CheckpointError(
                f"{path}: module {PPLXS!r} is not served beside model_type {kind!r}; it is known "
                f"of {PPLX_TYPE!r} alone"
            )
        settings = path.parent / module["path"] / "config.json"
        if module["path"] and settings.is_file() and (said := read_json(settings)):
            key = next(iter(said))
            raise CheckpointError(f"{settings}: {key}: an unknown setting; known: none")


def has_tasks(config: Mapping[str, Any]) -> bool:
    """Whether a `config.json` is of jina-embeddings-v3's original code."""
    return config.get("model_type") == "xlm-roberta" and isinstance(
        config.get("lora_adaptations"), list
    )


def transformer_folder(folder: Path) -> Path:
    """Where the encoder's own files are: the folder, or what `modules.json` says."""
    path = folder / "modules.json"
    if path.is_file():
        for module in read_modules(path):
            if kind_of(module) == "Transformer":
                return folder / module["path"]
    return folder


def module_paths(folder: Path) -> list[str]:
    """The sub-folders that `modules.json` names: what saving must carry along."""
    path = folder / "modules.json"
    if not path.is_file():
        return []
    return [m["path"] for m in read_modules(path) if m["path"]]
