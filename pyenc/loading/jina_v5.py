"""jina-embeddings-v5: a language model's weights, and an adapter of peft for each of its tasks.

Its `config.json` is Qwen 3's (-text-small) or EuroBERT's (-text-nano) under a `model_type` of its
own, with the tasks' names; its adapters lie in `adapters/<task>` and are of these weights, whatever
`base_model_name_or_path` says. Its own code takes no text without a task.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from ..errors import CheckpointError, InputError, InputTypeError
from .files import ADAPTER

MODEL_TYPE = "jina_embeddings_v5"
TASKS = "task_names"
FOLDER = "adapters"
HEAD_NORM = ".self_attn.q_norm.weight"
"""Which Qwen 3 has of every layer, and EuroBERT does not have."""


def is_of_tasks(config: Mapping[str, Any]) -> bool:
    """Whether a `config.json` is of such a checkpoint."""
    return config.get("model_type") == MODEL_TYPE and TASKS in config


def adapter_of(task: object, folder: Path, config: Mapping[str, Any], where: str) -> Path:
    """The folder of a task's adapter.

    Args:
        task: its name.
        folder: of `config.json`.
        config: what that holds.
        where: what the checkpoint is called, for messages.

    Raises:
        InputError: no task is named, or none of that name is there.
        CheckpointError: the files do not say which there are, or lack the task's.
    """
    names = config[TASKS]
    if (
        not isinstance(names, list)
        or not names
        or not all(isinstance(name, str) and _is_plain(name) for name in names)
    ):
        raise CheckpointError(
            f"{folder / 'config.json'}: {TASKS} must name the folders in {FOLDER}/, got "
            f"{names!r:.80}"
        )
    if task is None:
        raise InputError(
            f"{where}: its vectors are those of a task, and its own code takes no text without "
            f"one: expected task= (--task), one of {', '.join(names)}"
        )
    if not isinstance(task, str):
        raise InputTypeError(f"task must be a string or None, got {task!r:.40}")
    if task not in names:
        raise InputError(
            f"{where}: task {task!r} is unknown; this checkpoint has: {', '.join(names)}"
        )
    adapter = folder / FOLDER / task
    if not (adapter / ADAPTER).is_file():
        raise CheckpointError(f"{adapter / ADAPTER}: missing; {TASKS} of config.json names it")
    return adapter


def _is_plain(name: str) -> bool:
    """The name of a folder, and no path to elsewhere: the files are a stranger's."""
    return name == Path(name).name and name not in ("", "..") and len(name.encode()) < 256


def plain_config(config: Mapping[str, Any], tensors: Collection[str]) -> dict[str, Any]:
    """The `config.json` of the weights with a task's adapter in them, which transformers has a
    class for; of any other checkpoint its own.

    Args:
        config: the published one.
        tensors: names of the weights.
    """
    if not is_of_tasks(config):
        return dict(config)
    kind, name = ("eurobert", "EuroBert")
    if any(tensor.endswith(HEAD_NORM) for tensor in tensors):
        kind, name = ("qwen3", "Qwen3")
    left = {k: v for k, v in config.items() if k not in (TASKS, "auto_map")}
    return left | {"model_type": kind, "architectures": [f"{name}Model"]}
