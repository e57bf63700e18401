"""A checkpoint's tensor names, which tell its family: from a folder, the Hub's cache, or the Hub.

No weights are fetched for them: of a safetensors file on the Hub its first bytes are read.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, constants, try_to_load_from_cache

from ...errors import CheckpointError
from ...loading.weights import INDEXED, tensor_names
from ...loading.wrappers import modern_names


def names_of(name: str, hub: Mapping[str, Any]) -> frozenset[str] | None:
    """The tensor names of a checkpoint, as the families know them.

    Args:
        name: a folder or a Hub name.
        hub: revision, subfolder, token, cache_dir and local_files_only, as they were given.

    Returns:
        The names, prefix and all; None where there are no weights to be seen without fetching them,
        or none that can be read: who loads them will say why.
    """
    subfolder = hub.get("subfolder") or ""
    try:
        if Path(name).is_dir():
            return _of_folder(Path(name) / subfolder)
        cached = _cached(name, subfolder, hub)
        if cached is not None:
            return _of_folder(cached)
    except CheckpointError:
        return None
    offline = hub.get("local_files_only") or constants.HF_HUB_OFFLINE
    return None if offline or subfolder else _of_hub(name, hub)


def _of_folder(folder: Path) -> frozenset[str]:
    return frozenset(modern_names(tensor_names(folder), folder))


def _cached(name: str, subfolder: str, hub: Mapping[str, Any]) -> Path | None:
    """The folder of weights that the Hub's cache has already."""
    before = f"{subfolder}/" if subfolder else ""
    for file in (f for weights in INDEXED for f in (weights, f"{weights}.index.json")):
        path = try_to_load_from_cache(
            name, before + file, cache_dir=hub.get("cache_dir"), revision=hub.get("revision")
        )
        if isinstance(path, str):
            return Path(path).parent
    return None


def _of_hub(name: str, hub: Mapping[str, Any]) -> frozenset[str] | None:
    try:
        found = HfApi(token=hub.get("token")).get_safetensors_metadata(
            name, revision=hub.get("revision")
        )
        return frozenset(modern_names(found.weight_map, Path(name)))
    # Pickles alone, or a Hub that cannot be reached: of every class, by version of the client.
    except Exception:
        return None
