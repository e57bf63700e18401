"""From a name to a folder: a local folder as it is, a Hub repository by the files it needs."""

from __future__ import annotations

import re
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from ..errors import CheckpointError

SMALL_FILES = [
    "config.json",
    "config_sentence_transformers.json",
    "merges.txt",
    "modules.json",
    "sentence_*_config.json",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
    "vocab.txt",
]
SAFETENSORS = ["model.safetensors", "model-*.safetensors", "model.safetensors.index.json"]
PICKLES = ["pytorch_model.bin", "pytorch_model-*.bin", "pytorch_model.bin.index.json"]

_REPOSITORY = re.compile(r"[\w.-]+(/[\w.-]+)?")


def resolve(name_or_folder: str | Path, revision: str | None = None) -> Path:
    """The folder of a checkpoint.

    A folder that exists is taken as it is. Any other name is a Hub repository, of which only the
    configuration, the tokenizer and one set of weights are fetched, safetensors where there are
    any; token, cache and the offline switch are `huggingface_hub`'s own (HF_TOKEN, HF_HOME,
    HF_HUB_OFFLINE).

    Raises:
        CheckpointError: neither a folder nor a repository that can be reached.
    """
    folder = Path(name_or_folder)
    if folder.is_dir():
        if revision is not None:
            raise CheckpointError(f"{folder}: revision={revision!r} goes with a Hub name only")
        return folder
    name = str(name_or_folder)
    if folder.exists():
        raise CheckpointError(f"{folder}: a file; expected the folder that holds config.json")
    if not _REPOSITORY.fullmatch(name):
        raise CheckpointError(f"{name}: no such folder, and not a Hub name (owner/name)")
    try:
        # Folders of modules (1_Pooling, 2_Dense, and of old 0_Transformer) begin with a digit.
        fetched = Path(
            snapshot_download(
                name, revision=revision, allow_patterns=[*SMALL_FILES, *SAFETENSORS, "[0-9]_*/*"]
            )
        )
        encoder = [*fetched.glob("*.safetensors"), *fetched.glob("0_*/*")]
        if not encoder:
            snapshot_download(name, revision=revision, allow_patterns=PICKLES)
    except (RepositoryNotFoundError, RevisionNotFoundError, HFValidationError) as error:
        at = f" at revision {revision!r}" if revision else ""
        raise CheckpointError(
            f"{name}{at}: no such folder here, and no such repository on the Hub"
        ) from error
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        raise CheckpointError(
            f"{name}: no such folder here, not in the Hub's cache, and the Hub cannot be reached "
            f"({type(error).__name__}: {str(error).splitlines()[0]})"
        ) from error
    return fetched
