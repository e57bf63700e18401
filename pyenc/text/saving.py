"""What `TextEncoder.save` writes: a checkpoint's files as they came, and what was said since."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from ..errors import CheckpointError
from ..loading import Checkpoint, save_checkpoint
from ..loading.files import moved_into
from ..loading.save import config_of
from .assumed import limit_file, recipe_files, told
from .recipe import LONE_POOLING, Recipe
from .tasks import own_modules


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
