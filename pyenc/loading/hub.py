"""From a name to a folder: a local folder as it is, a Hub repository by the files it needs."""

from __future__ import annotations

import re
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any

from ..errors import CheckpointError, InputError, InputTypeError
from .files import ADAPTER

TOKENIZER_FILES = (
    "tokenizer.json", "vocab.txt", "vocab.json", "merges.txt", "spm.model", "spiece.model",
    "sentencepiece.bpe.model", "tokenizer_config.json",
    "special_tokens_map.json", "added_tokens.json", "chat_template.jinja", "chat_template.json",
    "additional_chat_templates/*.jinja",
)  # fmt: skip
"""Of chat templates none decides the tokens of a text; they are carried along."""

SMALL_FILES = [
    "config.json",
    ADAPTER,
    "config_sentence_transformers.json",
    "modules.json",
    "sentence_*_config.json",
    *TOKENIZER_FILES,
]
SAFETENSORS = [
    "model.safetensors", "model-*.safetensors", "model.safetensors.index.json",
    "adapter_model.safetensors", "adapter_model-*.safetensors",
    "adapter_model.safetensors.index.json",
    f"adapters/*/{ADAPTER}", "adapters/*/adapter_model.safetensors",
]  # fmt: skip
PICKLES = [
    "pytorch_model.bin", "pytorch_model-*.bin", "pytorch_model.bin.index.json",
    "adapter_model.bin",
]  # fmt: skip

_REPOSITORY = re.compile(r"[\w.-]+(/[\w.-]+)?")


def resolve(
    name_or_folder: str | Path,
    revision: str | None = None,
    *,
    weights: bool = True,
    subfolder: str = "",
    options: Mapping[str, Any] | None = None,
) -> Path:
    """The folder of a checkpoint.

    A folder that exists is taken as it is. Any other name is a Hub repository, of which only the
    configuration, the tokenizer and one set of weights are fetched, safetensors where there are
    any; token, cache and the offline switch are `huggingface_hub`'s own (HF_TOKEN, HF_HOME,
    HF_HUB_OFFLINE). With `weights=False` only the small files.

    Args:
        name_or_folder, revision: as of `pyenc.load`.
        weights: whether the weights are wanted too.
        subfolder: where the checkpoint is inside of the folder or repository; what is returned
            ends in it.
        options: of `huggingface_hub.snapshot_download`, such as token, cache_dir and
            local_files_only.

    Raises:
        CheckpointError: neither a folder nor a repository that can be reached.
        InputError: an argument is empty or of the wrong type.
    """
    _check_arguments(name_or_folder, revision)
    folder = Path(name_or_folder)
    try:
        is_folder, exists = folder.is_dir(), folder.exists()
    except OSError as error:  # a name that no file can have, or a folder that is not ours to see
        name = str(folder)
        name = name if len(name) <= 200 else name[:200] + "..."
        raise CheckpointError(f"{name}: {error.strerror}") from error
    if is_folder:
        if revision is not None:
            raise CheckpointError(f"{folder}: revision={revision!r} goes with a Hub name only")
        return folder / subfolder
    name = str(name_or_folder)
    if exists:
        raise CheckpointError(f"{folder}: a file; expected the folder that holds config.json")
    # Not above, as below: it imports what reads weights.
    from .shipped import shipped

    if shipped(name) is not None:
        raise CheckpointError(
            f"{name}: is made as it is loaded, by pyenc.load({name!r}), and no folder or Hub name; "
            "save() of what that gives writes a folder, which may be named here"
        )
    if not _REPOSITORY.fullmatch(name):
        raise CheckpointError(f"{name}: no such folder, and not a Hub name (owner/name)")
    # Folders of modules (1_Pooling, 2_Dense, and of old 0_Transformer) begin with a digit.
    patterns = [*SMALL_FILES, *SAFETENSORS, "[0-9]_*/*"] if weights else SMALL_FILES
    # Not above: it imports the Hub's client, of which a folder needs nothing.
    from .hub_fetch import fetch, owner_meant, why

    try:
        return fetch(name, revision, subfolder, patterns, PICKLES if weights else [], options or {})
    except Exception as error:
        # The exceptions of three HTTP libraries, by the version of huggingface_hub, come here too.
        at = f" at revision {revision!r}" if revision else ""
        raise CheckpointError(f"{name}{at}: {why(error)}{owner_meant(name)}") from error


def _check_arguments(name_or_folder: object, revision: object) -> None:
    if not isinstance(name_or_folder, (str, PathLike)):
        raise InputTypeError(
            f"expected a folder or a Hub name (owner/name), got {type(name_or_folder).__name__}"
        )
    if name_or_folder == "":
        raise InputError("expected a folder or a Hub name (owner/name), got an empty string")
    if revision is None:
        return
    if not isinstance(revision, str):
        raise InputTypeError(f"revision must be a string or None, got {type(revision).__name__}")
    if not revision:
        raise InputError("revision must be a branch, tag or commit, or None; got an empty string")
