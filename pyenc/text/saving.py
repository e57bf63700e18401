"""What `TextEncoder.save` writes: a checkpoint's files as they came, and what was said since."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..errors import CheckpointError
from ..loading import Checkpoint, save_checkpoint
from ..loading.files import moved_into
from ..loading.own_type import published
from ..loading.save import config_of
from .assumed import limit_file, recipe_files, told
from .recipe import LONE_POOLING, Recipe
from .tasks import own_modules
from .tokenizer import TextTokenizer

DECIDING = ("model_type", "tokenizer_class")
"""Keys of `config.json` that decide whose rules a tokenizer follows."""


def said_files(
    files: Mapping[str, bytes],
    loaded: Recipe,
    recipe: Recipe,
    *,
    max_length: int | None,
    width: int,
    unsaid_pooling: str,
    name: str,
) -> dict[str, bytes]:
    """The files to save, relative path -> content: as they came, and what has been set since.

    Args:
        files: relative path -> content of what the checkpoint came with.
        loaded: what those files say.
        recipe: what they are to say.
        max_length: the limit that was set since, in tokens.
        width: of the token states.
        unsaid_pooling: what is read where no file names a pooling, by the checkpoint as it is now;
            an encoder in pyenc's own format may have been another one.
        name: of the checkpoint, for messages.

    Raises:
        CheckpointError: the recipe differs in what the files cannot hold.
    """
    said = dict(files)
    if recipe != loaded:
        wanted = told(loaded, recipe.pooling, recipe.normalize)
        if recipe != replace(wanted, assumed=recipe.assumed):
            raise CheckpointError(
                f"{name}: its recipe was changed beyond pooling and normalize, which a "
                "saved folder would not hold"
            )
    if recipe != loaded or not _says(said, recipe, unsaid_pooling):
        said |= recipe_files(said, recipe, width)
    if max_length is not None:
        said |= limit_file(said, recipe, max_length)
    return said


def words_as_read(
    files: Mapping[str, bytes], recipe: Recipe, words: TextTokenizer | None, checkpoint: Checkpoint
) -> dict[str, bytes]:
    """The tokenizer's files, where another `config.json` is written beside them than they came
    with: they say by themselves what was read with that one.

    Args:
        files: relative path -> content of what the checkpoint came with.
        recipe: says which folder of it the tokenizer is in.
        words: the tokenizer that was made of them.
        checkpoint: which may be in pyenc's own format by now.
    """
    below = f"{recipe.transformer_path}/" if recipe.transformer_path else ""
    before = published(_object(files, below + "config.json"))
    after = config_of(checkpoint)
    if words is None or all(before.get(key) == after.get(key) for key in DECIDING):
        return {}
    written = {}
    config = _object(files, below + "tokenizer_config.json")
    named = str(config.get("tokenizer_class"))
    if words.class_name not in (named, named.removesuffix("Fast")):
        said = config | {"tokenizer_class": words.class_name}
        written["tokenizer_config.json"] = json.dumps(said, indent=2) + "\n"
    if words.disputed:
        whole = _object(files, below + "tokenizer.json")
        whole |= {"post_processor": words.post_processor()}
        written["tokenizer.json"] = json.dumps(whole, indent=2, ensure_ascii=False) + "\n"
    return {below + name: content.encode() for name, content in written.items()}


def _object(files: Mapping[str, bytes], path: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(files.get(path, b"{}"))
    return found


def _says(files: Mapping[str, bytes], recipe: Recipe, unsaid_pooling: str) -> bool:
    """Whether a recipe that the files left open would be read from them again."""
    if "modules.json" in files:
        return True
    pooled = recipe.pooling == unsaid_pooling and recipe.include_prompt
    return not recipe.normalize and (pooled or LONE_POOLING in files)


def write_folder(
    checkpoint: Checkpoint, files: Mapping[str, bytes], recipe: Recipe, folder: Path
) -> None:
    """Write a checkpoint and the files beside it, the encoder where the recipe has it.

    Raises:
        CheckpointError: `folder` cannot be written as a checkpoint's folder, or the checkpoint
            holds what its tensors cannot.
    """
    files = {**files, **own_modules(files, config_of(checkpoint))}
    inside = recipe.transformer_path
    below = {k: v for k, v in files.items() if inside and k.startswith(inside + "/")}
    rest = {k: v for k, v in files.items() if k not in below}
    if not inside:
        save_checkpoint(checkpoint, folder, rest)
        return
    bare = {k.removeprefix(inside + "/"): v for k, v in below.items()}
    save_checkpoint(checkpoint, folder / inside, bare)
    for name, content in rest.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        with moved_into(folder / name) as partial:
            partial.write_bytes(content)
