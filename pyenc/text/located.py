"""Where a checkpoint's parts are: in one folder, or in two where it is an adapter of peft.

An adapter's folder has no weights of a model and no `config.json`: both are its base's, which
`adapter_config.json` names. How its vectors are made its own files say, as sentence-transformers
reads them, and its tokenizer is its own where it has one.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from ..errors import CheckpointError
from ..loading import read_json, resolve
from ..loading.files import ADAPTER
from ..loading.hub import SMALL_FILES, TOKENIZER_FILES
from ..loading.jina_v5 import adapter_of, is_of_tasks
from ..loading.lora import check_adapter
from ..loading.lora_settings import read_settings
from ..loading.weights import has_weights
from .module_list import module_paths, transformer_folder
from .recipe import LONE_POOLING
from .tokenizer import has_tokenizer


@dataclass(frozen=True)
class Located:
    """The folders of one checkpoint."""

    folder: Path
    """How its vectors are made, and its tokenizer."""
    weights: Path
    """`config.json` and the weights."""
    adapter: Path | None = None
    """What is merged into them."""
    of_task: bool = False
    """Whether a task has said which."""

    @property
    def apart(self) -> bool:
        """Whether `config.json` lies elsewhere than the other small files."""
        return self.weights != transformer_folder(self.folder)


def locate(
    name_or_folder: str | Path,
    revision: str | None = None,
    *,
    adapter: str | Path | None = None,
    task: str | None = None,
) -> Located:
    """The parts of a checkpoint by name or folder.

    Args:
        name_or_folder, revision, adapter, task: as of `pyenc.load`.

    Raises:
        CheckpointError: a folder or repository is not there, or an adapter's base is not known.
        InputError: `task` names none of its adapters.
    """
    check_adapter(adapter)
    folder = resolve(name_or_folder, revision)
    inside = transformer_folder(folder)
    if adapter is not None:
        found = transformer_folder(resolve(adapter))
        if not (found / ADAPTER).is_file():
            raise CheckpointError(f"{adapter}: no adapter of peft: {found / ADAPTER} is missing")
        if (inside / ADAPTER).is_file() and not has_weights(inside):
            raise CheckpointError(f"{name_or_folder}: {_STACKED}")
        return Located(folder, inside, found)
    if (inside / ADAPTER).is_file():
        return Located(folder, _base_of(inside), inside)
    path = inside / "config.json"
    if path.is_file() and is_of_tasks(config := read_json(path)):
        return Located(folder, inside, adapter_of(task, inside, config, str(name_or_folder)), True)
    return Located(folder, inside)


BORROWED = ("config.json", *TOKENIZER_FILES)
"""What an adapter's folder may take from its base's, beside the weights: the first in any case."""

_STACKED = "an adapter of peft, and adapters of adapters are not served"


def _base_of(folder: Path) -> Path:
    """The folder of the weights that an adapter's folder says it changes."""
    settings = read_settings(folder)
    hint = "pyenc.load(base, adapter=...) says which weights it changes"
    if has_weights(folder):
        raise CheckpointError(
            f"{settings.path}: there are whole weights beside it, and whether its changes are in "
            f"them is not known: {hint}, and without the file the weights are taken as they are"
        )
    if not settings.base:
        raise CheckpointError(f"{settings.path}: base_model_name_or_path names nothing: {hint}")
    try:
        revision = None if _is_folder(settings.base) else settings.revision
        base = transformer_folder(resolve(settings.base, revision))
    except CheckpointError as error:
        raise CheckpointError(
            f"{settings.path}: base_model_name_or_path: {error}; {hint}"
        ) from error
    if (base / ADAPTER).is_file():
        raise CheckpointError(f"{settings.path}: its base, {settings.base}, is {_STACKED}")
    return base


def _is_folder(name: str) -> bool:
    try:
        return Path(name).is_dir()
    except OSError:  # a name that no file can have, of which `resolve` tells
        return False


@contextmanager
def whole(located: Located, called: str) -> Iterator[Path]:
    """A folder with all small files of a checkpoint: its own, or one for the moment where an
    adapter's and its base's are put together, which errors call as the checkpoint is called."""
    if not located.apart:
        yield located.folder
        return
    with TemporaryDirectory() as folder:
        sources = _together(located)
        for path, source in sources.items():
            (Path(folder) / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, Path(folder) / path)
        try:
            yield Path(folder)
        except CheckpointError as error:
            said = str(error)
            for path in sorted(sources, key=len, reverse=True):
                said = said.replace(str(Path(folder) / path), str(sources[path]))
            raise type(error)(said.replace(folder, called)) from error


def _together(located: Located) -> dict[str, Path]:
    """Path in a whole folder -> file."""
    assert located.adapter is not None
    below = located.adapter.relative_to(located.folder)
    files = small_paths(located.folder, below.as_posix())
    for pattern in BORROWED[:1] if has_tokenizer(located.adapter) else BORROWED:
        for path in located.weights.glob(pattern):
            # What the adapter has stays: a limit of its own beside the base's words.
            files.setdefault((below / path.relative_to(located.weights)).as_posix(), path)
    return files


def small_files(folder: Path, transformer_path: str) -> dict[str, bytes]:
    """Everything but the encoder's weights, so that saving needs the old folder no more.

    Args:
        folder, transformer_path: as of `small_paths`.

    Returns:
        Relative path -> content.
    """
    return {name: path.read_bytes() for name, path in small_paths(folder, transformer_path).items()}


def small_paths(folder: Path, transformer_path: str) -> dict[str, Path]:
    """Where everything but the encoder's weights is.

    Args:
        folder: of the checkpoint.
        transformer_path: where the encoder's own files are, below it.

    Returns:
        Relative path -> file.
    """
    found: list[Path] = []
    for base in {folder, folder / transformer_path}:
        for pattern in set(SMALL_FILES) - {ADAPTER}:  # which is in the weights, if anywhere
            found += base.glob(pattern)
    if not (folder / "modules.json").is_file() and (folder / LONE_POOLING).is_file():
        found.append(folder / LONE_POOLING)
    for module in module_paths(folder):
        if folder / module != folder / transformer_path:
            # Normalize has no folder.
            found += (path for path in (folder / module).glob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path for path in found}
