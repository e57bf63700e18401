"""Another checkpoint's tokenizer, for one that carries none."""

from __future__ import annotations

import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from ..errors import CheckpointError
from ..loading import read_config, read_json, resolve
from .module_list import transformer_folder
from .recipe import Recipe
from .tokenizer import TOKENIZER_FILES, TextTokenizer, has_tokenizer
from .tokenizer_files import LOOKED_FOR
from .tokenizer_settings import LIMITS, read_limit


def borrowed(
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
