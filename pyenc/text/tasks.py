"""The task a checkpoint's adapter was chosen for: what its texts begin with, and what is saved.

jina-embeddings-v3 has a prompt for each of its tasks, called as the task. One that was loaded for a
task puts that prompt before every text, as the original's `encode(texts, task=...)`, and has no
other: another task's prompt before this task's adapter is nobody's.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ..errors import CheckpointError
from ..loading import Checkpoint
from .module_list import JINAS, KINDS, has_tasks, kind_of
from .recipe import Recipe

SIDES = {"retrieval.query": ("query",), "retrieval.passage": ("document",)}
"""Of tasks with two sides, whose prompt it is too; of others it is both."""

PROMPTS = "config_sentence_transformers.json"


def prompts_of(recipe: Recipe, checkpoint: Checkpoint, where: str) -> dict[str, str]:
    """The prompts of a checkpoint that was loaded for a task.

    Raises:
        CheckpointError: its files say two of them.
    """
    task = checkpoint.task
    assert task is not None
    instruction = checkpoint.task_instructions[task]
    if recipe.prompts.get(task, instruction) != instruction:
        raise CheckpointError(
            f"{where}: the prompt {task!r} is {recipe.prompts[task]!r} in {PROMPTS}, but "
            f"{instruction!r} in task_instructions of config.json; which of the two counts is not "
            "known"
        )
    return dict.fromkeys((task, *SIDES.get(task, ("query", "document"))), instruction)


def of_task(recipe: Recipe, checkpoint: Checkpoint, where: str) -> Recipe:
    """The recipe of a checkpoint that was loaded for a task, or as it is."""
    if checkpoint.task is None:
        return recipe
    prompts = prompts_of(recipe, checkpoint, where)
    return replace(recipe, prompts=prompts, default_prompt_name=checkpoint.task)


def task_files(files: Mapping[str, bytes], recipe: Recipe) -> dict[str, bytes]:
    """The file that says its prompt."""
    said = json.loads(files[PROMPTS]) if PROMPTS in files else {}
    said |= {"prompts": recipe.prompts, "default_prompt_name": recipe.default_prompt_name}
    return {PROMPTS: (json.dumps(said, indent=2) + "\n").encode()}


def own_modules(files: Mapping[str, bytes], config: Mapping[str, Any]) -> dict[str, bytes]:
    """`modules.json` without the class of the repository, where what is saved has no adapters any
    more and no need of it: transformers has a class for that.

    With adapters it stays. Its file is not carried along, so sentence-transformers asks for it as
    it does of the published folder, and makes no XLM-RoBERTa of random tensors.

    Args:
        files: relative path -> content of what is saved.
        config: the `config.json` that is saved.
    """
    modules = json.loads(files.get("modules.json", b"[]"))
    jinas = [module for module in modules if kind_of(module) == JINAS]
    if not jinas or has_tasks(config):
        return {}
    for module in jinas:
        module["type"] = KINDS + "Transformer"
        module.pop("kwargs", None)
    return {"modules.json": (json.dumps(modules, indent=2) + "\n").encode()}
