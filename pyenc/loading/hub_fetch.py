"""Fetching the files of a Hub repository, and what to say where that fails."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from fnmatch import fnmatch, fnmatchcase
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

OF_ADAPTERS = "adapter_"
"""How the names of an adapter's weights begin, beside which there may be a model's."""

_FOLDER = re.compile(r"[\w.-]+(/[\w.-]+)*")
"""No pattern, and not absolute."""


def fetch(
    name: str,
    revision: str | None,
    subfolder: str,
    patterns: Sequence[str],
    pickles: Sequence[str],
    options: Mapping[str, Any],
) -> Path:
    """A repository's folder in the Hub's cache, or a folder inside of it.

    Args:
        name, revision, subfolder, options: as of `hub.resolve`.
        patterns: of the files to fetch.
        pickles: of those to fetch where no safetensors came.
    """

    def some(revision: str | None, patterns: Sequence[str]) -> Path:
        inside = [f"{subfolder}/{pattern}" if subfolder else pattern for pattern in patterns]
        return Path(snapshot_download(name, revision=revision, allow_patterns=inside, **options))

    fetched = some(revision, patterns)
    inside = fetched / subfolder
    folders = module_folders(inside / "modules.json")
    missing = [
        f for f in folders if f and not any(fnmatch(f"{f}/config.json", p) for p in patterns)
    ]
    if missing:
        # The folder is called by its commit: a branch may have moved on since.
        some(fetched.name, [f"{f}/{pattern}" for f in missing for pattern in (*patterns, *pickles)])
    # Where the encoder's own weights are in a folder of their own, the outer one needs none.
    first = folders[0] if folders and folders[0] else "0_*"
    own = [path for path in inside.glob("*.safetensors") if not path.name.startswith(OF_ADAPTERS)]
    if pickles and not [*own, *inside.glob(f"{first}/*")]:
        some(fetched.name, pickles)
    return inside


OWNER = "sentence-transformers"
OWNED = (
    "LaBSE", "all-*", "distiluse-base-*", "gtr-t5-*", "msmarco-*", "multi-qa-*", "paraphrase-*",
    "sentence-t5-*",
)  # fmt: skip
"""Names that it publishes, and that its library takes without it."""


def owner_meant(name: str) -> str:
    """The end of a message about a name without an owner that is known with one."""
    if not any(fnmatchcase(name, pattern) for pattern in OWNED):
        return ""
    return f"; a Hub name has its owner before it: {OWNER}/{name} is likely meant"


def module_folders(path: Path) -> list[str]:
    """The folders that a `modules.json` names, in its order; "" is its own.

    Empty where it is missing or damaged, without what leads elsewhere: who reads it says so.
    """
    try:
        found = [module.get("path", "") for module in json.loads(path.read_text("utf-8"))]
        return [name for name in found if not name or _is_inside(name)]
    except (OSError, ValueError, TypeError, AttributeError, RecursionError):
        return []


def _is_inside(name: str) -> bool:
    return bool(_FOLDER.fullmatch(name)) and not {".", ".."} & set(name.split("/"))


def why(error: Exception) -> str:
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
    # Up to huggingface_hub 0.36 it is one of the answers of the Hub.
    if isinstance(error, LocalEntryNotFoundError):
        return (
            f"no such folder here, not in the Hub's cache, and the Hub cannot be reached ({reason})"
        )
    if isinstance(error, HfHubHTTPError):
        return f"no such folder here, and the Hub answered {reason}"
    return f"no such folder here, and fetching it from the Hub failed ({reason})"


def _short(text: str, most: int = 200) -> str:
    return text if len(text) <= most else text[:most] + "..."
