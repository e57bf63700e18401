"""Low-rank adapters of tasks inside of a checkpoint's weights, as jina-embeddings-v3 has them.

A weight W then stands as `<layer>.parametrizations.weight.original`, beside it lora_A and lora_B of
all tasks, one behind the other: (tasks, r, in) and (tasks, out, r) of a linear layer, (tasks, rows,
r) and (tasks, r, width) of an embedding. The weight of a task is W + alpha / r * B A, A B of an
embedding (Hu et al., LoRA, arXiv 2106.09685); without a task it is W, as in the original code.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import CheckpointError, InputError, InputTypeError
from ..models.families import ConfigFile
from .low_rank import added
from .strict import check_dtype_served, check_finite
from .weights import WeightFiles
from .wrappers import BASE, FACTORS, adapted

EMBEDDINGS = ("word_embeddings", "token_type_embeddings")


@dataclass(frozen=True)
class Tasks:
    """Which tasks a checkpoint has adapters for, and how they count."""

    instructions: Mapping[str, str]
    """By the name of the task, in the order of the adapters."""
    rank: int
    scaling: float


def read_tasks(files: WeightFiles, config: ConfigFile) -> Tasks | None:
    """The tasks whose adapters are among the weights; None where there are none.

    Raises:
        CheckpointError: `config.json` does not describe them, or a tensor is not as it says.
    """
    layers = adapted(files.names)
    if not layers:
        return None
    names = config.values.get("lora_adaptations")
    if not isinstance(names, list) or not names or not all(isinstance(n, str) for n in names):
        raise CheckpointError(
            f"{config.path}: lora_adaptations must name the tasks of the adapters that the weights "
            f"have, got {names!r:.80}"
        )
    said = config.section("task_instructions").values
    wrong = [name for name in names if not isinstance(said.get(name), str)]
    if wrong or len(said) != len(names) or len(set(names)) != len(names):
        raise CheckpointError(
            f"{config.path}: task_instructions must have a string for each of {', '.join(names)}, "
            f"and no other, got {dict(said)!r:.200}"
        )
    if not config.flag("load_trained_adapters", False):
        raise CheckpointError(
            f"{config.path}: load_trained_adapters is not true, so that the original code would "
            "make new adapters in the place of those that the weights have; expected true"
        )
    rank = config.integer("lora_rank", 4)
    if rank < 1:
        raise CheckpointError(f"{config.path}: lora_rank must be at least 1, got 0")
    scaling = config.number("lora_alpha", 1.0) / rank
    tasks = Tasks({name: said[name] for name in names}, rank, scaling)
    for layer in layers:
        _check_shapes(files, layer, tasks)
    return tasks


def _check_shapes(files: WeightFiles, layer: str, tasks: Tasks) -> None:
    base = files.shape(layer + BASE)
    if len(base) != 2:
        raise CheckpointError(
            f"{files.file_of(layer + BASE)}: tensor {layer + BASE!r} has shape {base}, and its "
            "adapter needs a matrix"
        )
    count, (rows, width), r = len(tasks.instructions), base, tasks.rank
    right = [(count, r, width), (count, rows, r)]
    if _embedding(layer):
        right = [(count, rows, r), (count, r, width)]
    for factor, shape in zip(FACTORS, right, strict=True):
        if (found := files.shape(layer + factor)) != shape:
            raise CheckpointError(
                f"{files.file_of(layer + factor)}: tensor {layer + factor!r} has shape {found}, "
                f"but {count} tasks of rank {r} beside {base} ask for {shape}"
            )


def _embedding(layer: str) -> bool:
    return layer.rpartition(".")[2] in EMBEDDINGS


def check_task(task: Any, tasks: Tasks | None, where: str) -> None:
    """Refuses a task that the checkpoint has no adapter for."""
    if task is None:
        return
    if not isinstance(task, str):
        raise InputTypeError(f"task must be a string or None, got {task!r:.40}")
    if tasks is None:
        raise InputError(
            f"{where}: task={task!r} asks for an adapter, and the weights have none; without task= "
            "they are read as they are (jinaai/jina-embeddings-v3 has some among the weights; "
            "adapter= names one of PEFT, in a folder of its own)"
        )
    if task not in tasks.instructions:
        raise InputError(
            f"{where}: task {task!r} is unknown; this checkpoint has: "
            f"{', '.join(tasks.instructions)}; without a task its weights are read without an "
            "adapter"
        )


class MergedFiles(WeightFiles):
    """Weight files read with a task's adapter in the weights, or without any.

    Args:
        files: with adapters among their tensors.
        tasks: what they are.
        task: whose adapter; None: the weights without one.
        least: what the sum is made in, where the weights are not wider (`dtype_of_sums`).
    """

    def __init__(
        self, files: WeightFiles, tasks: Tasks, task: str | None, least: torch.dtype
    ) -> None:
        self.folder = files.folder
        self._least = least
        self._files = files
        self._scaling = tasks.scaling
        self._number = None if task is None else list(tasks.instructions).index(task)

    @property
    def names(self) -> list[str]:
        return self._files.names

    @property
    def paths(self) -> list[Path]:
        return self._files.paths

    def file_of(self, name: str) -> Path:
        return self._files.file_of(name)

    def shape(self, name: str) -> tuple[int, ...]:
        return self._files.shape(name)

    def dtype(self, name: str) -> torch.dtype:
        return self._files.dtype(name)

    def read(self, name: str) -> Tensor:
        """The tensor; with an adapter as wide as the sum."""
        base = self._files.read(name)
        layer = name.removesuffix(BASE)
        if self._number is None or layer == name:
            return base
        check_dtype_served(self, name, base)
        wide = torch.promote_types(base.dtype, self._least)
        a, b = (_factor(self, layer + factor)[self._number].to(wide) for factor in FACTORS)
        left, right = (a, b) if _embedding(layer) else (b, a)
        return added(base.to(wide), left, right, self._scaling)


def plain_name(name: str) -> str:
    """What a tensor is called where there are no adapters."""
    return name.removesuffix(BASE) + ".weight" if name.endswith(BASE) else name


def factors(files: WeightFiles) -> dict[str, Tensor]:
    """The adapters themselves, in memory of their own, to be written back beside the weights."""
    return {
        layer + factor: _factor(files, layer + factor).clone()
        for layer in adapted(files.names)
        for factor in FACTORS
    }


def _factor(files: WeightFiles, name: str) -> Tensor:
    """A tensor of adapters, of all tasks."""
    tensor = files.read(name)
    check_dtype_served(files, name, tensor)
    check_finite(files, name, tensor, tensor.dtype)
    return tensor
