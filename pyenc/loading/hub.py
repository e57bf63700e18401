"""From a name to a folder: a local folder as it is, a Hub repository by the files it needs."""

from __future__ import annotations

import re
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from ..errors import CheckpointError, InputError, InputTypeError

TOKENIZER_FILES = (
    "tokenizer.json", "vocab.txt", "vocab.json", "merges.txt", "tokenizer_config.json",
    "special_tokens_map.json", "added_tokens.json", "chat_template.jinja", "chat_template.json",
    "additional_chat_templates/*.jinja",
)  # fmt: skip
"""Of chat templates none decides the tokens of a text; they are carried along."""

SMALL_FILES = [
    "config.json",
    "config_sentence_transformers.json",
    "modules.json",
    "sentence_*_config.json",
    *TOKENIZER_FILES,
]
SAFETENSORS = ["model.safetensors", "model-*.safetensors", "model.safetensors.index.json"]
PICKLES = ["pytorch_model.bin", "pytorch_model-*.bin", "pytorch_model.bin.index.json"]

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
        raise CheckpointError(f"{_short(str(folder))}: {error.strerror}") from error
    if is_folder:
        if revision is not None:
            raise CheckpointError(f"{folder}: revision={revision!r} goes with a Hub name only")
        return folder / subfolder
    name = str(name_or_folder)
    if exists:
        raise CheckpointError(f"{folder}: a file; expected the folder that holds config.json")
    if not _REPOSITORY.fullmatch(name):
        raise CheckpointError(f"{name}: no such folder, and not a Hub name (owner/name)")
    # Folders of modules (1_Pooling, 2_Dense, and of old 0_Transformer) begin with a digit.
    patterns = [*SMALL_FILES, *SAFETENSORS, "[0-9]_*/*"] if weights else SMALL_FILES
    options = options or {}

    def fetch(revision: str | None, patterns: list[str]) -> Path:
        inside = [f"{subfolder}/{pattern}" if subfolder else pattern for pattern in patterns]
        return Path(snapshot_download(name, revision=revision, allow_patterns=inside, **options))

    try:
        fetched = fetch(revision, patterns)
        inside = fetched / subfolder
        if weights and not [*inside.glob("*.safetensors"), *inside.glob("0_*/*")]:
            # The folder is called by its commit: a branch may have moved on since.
            fetch(fetched.name, PICKLES)
    except Exception as error:
        # The exceptions of three HTTP libraries, by the version of huggingface_hub, come here too.
        at = f" at revision {revision!r}" if revision else ""
        raise CheckpointError(f"{name}{at}: {_why(error)}") from error
    return inside


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


def _why(error: Exception) -> str:
    """What the Hub, or the way to it, has against a name."""
    if isinstance(error, LocalEntryNotFoundError) and isinstance(error.__cause__, HfHubHTTPError):
        error = error.__cause__  # the Hub did answer
    reason = f"{type(error).__name__}: {_short((str(error).splitlines() or ['no message'])[0])}"
    if isinstance(error, GatedRepoError):
        return (
            "a gated repository: ask for access on its page at the Hub, then set HF_TOKEN or run "
            f"`hf auth login` ({reason})"
        )
    if isinstance(error, RepositoryNotFoundError):
        return (
            "no such folder here, and no such repository on the Hub (a private one needs HF_TOKEN "
            "or `hf auth login`)"
        )
    if isinstance(error, RevisionNotFoundError):
        return "no such folder here, and the repository on the Hub has no such revision"
    if isinstance(error, HFValidationError):
        return "no such folder here, and no such repository on the Hub"
    if isinstance(error, HfHubHTTPError):
        return f"no such folder here, and the Hub answered {reason}"
    if isinstance(error, LocalEntryNotFoundError):
        return (
            f"no such folder here, not in the Hub's cache, and the Hub cannot be reached ({reason})"
        )
    return f"no such folder here, and fetching it from the Hub failed ({reason})"


def _short(text: str, most: int = 200) -> str:
    return text if len(text) <= most else text[:most] + "..."
