"""What a checkpoint's files leave open about its vectors: assumed aloud, said at load, and saved.

A folder without `modules.json` says neither how token states are pooled nor whether the vector has
unit length. Mean pooling (the last token's state of a language model) and no normalisation are then
assumed, as sentence-transformers does; of a family whose model cards all have the first token's
state, that.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from difflib import get_close_matches
from itertools import count
from typing import Any

from ..errors import CheckpointError, InputError, InputTypeError
from ..loading.files import folder_below
from .arguments import flag_or_none
from .module_list import KINDS, kind_of
from .recipe import POOLING_FLAGS, POOLINGS, Recipe, one_or_several
from .recipe_keys import SENTENCE_CONFIGS, TOKENIZER_SETTINGS


class AssumptionWarning(UserWarning):
    """A checkpoint's files do not say how its vectors are made, or say it in two ways, so something
    was assumed.

    Attributes:
        assumed: which of "pooling" and "normalize"; "special tokens" where files contradict each
            other about those around a text.
    """

    def __init__(self, message: str, assumed: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.assumed = assumed


def checked_said(pooling: object, normalize: object) -> str | tuple[str, ...] | None:
    """The arguments of `load`, before anything is read; the pooling as a `Recipe` has it.

    Raises:
        InputError: there is no such pooling, or it is not served.
        InputTypeError: an argument has the wrong type.
    """
    flag_or_none("normalize", normalize)
    if pooling is None:
        return None
    several = [pooling] if isinstance(pooling, str) else pooling
    if not isinstance(several, (list, tuple)) or not all(isinstance(p, str) for p in several):
        raise InputTypeError(
            f"pooling must be a string, a sequence of strings or None, got {pooling!r:.60}"
        )
    for each in several:
        if each not in POOLINGS:
            close = get_close_matches(each.lower(), POOLINGS, 1)
            raise InputError(
                f"pooling {each!r} is not served{f'; did you mean {close[0]!r}?' if close else ''}"
                f"; served: {', '.join(POOLINGS)}"
            )
    if not several:
        raise InputError(f"pooling names none; served: one or more of {', '.join(POOLINGS)}")
    return one_or_several(several)


def told(recipe: Recipe, pooling: str | tuple[str, ...] | None, normalize: bool | None) -> Recipe:
    """The recipe with what was said at load, which comes before what the files say."""
    said = {"pooling": pooling, "normalize": flag_or_none("normalize", normalize)}
    changes: dict[str, Any] = {key: value for key, value in said.items() if value is not None}
    left = tuple(key for key in recipe.assumed if key not in changes)
    return replace(recipe, **changes, assumed=left)


def assumption(recipe: Recipe, config: Mapping[str, Any] | None = None) -> str:
    """What was assumed, and how to say what is right; empty if nothing was.

    Args:
        recipe: of the checkpoint.
        config: its `config.json`, whose class may have more than vectors.
    """
    words = []
    if "pooling" in recipe.assumed:
        words.append(f"{', '.join(recipe.poolings)} pooling")
    if "normalize" in recipe.assumed:
        words.append("unit length" if recipe.normalize else "no normalisation")
    if not words:
        return ""
    asks = ", ".join(f"{key}=" for key in recipe.assumed)
    options = ", ".join(f"--{key}" for key in recipe.assumed)
    kind = _classifier((config or {}).get("architectures"))
    # Of a reranker without sentence-transformers files, as the published ones are.
    beside = f"; the classifier of its {kind} has no part in them" if kind else ""
    if "normalize" in recipe.assumed and _says_more(recipe):
        beside += (
            "; prompts and limits of its sentence_*_config.json and config_sentence_transformers."
            "json count, which sentence-transformers passes over without modules.json"
        )
    if "pooling" not in recipe.assumed and recipe.pooling not in ("mean", "lasttoken"):
        beside += (
            f"; the pooling is {', '.join(recipe.poolings)}, as is said, where "
            "sentence-transformers takes the mean without modules.json"
        )
    whose = "sentence-transformers does"
    if "pooling" in recipe.assumed and recipe.pooling not in ("mean", "lasttoken"):
        whose = "its family's model cards have it, where sentence-transformers takes the mean"
    return (
        f"its files do not say how its vectors are made: assumed {' and '.join(words)}, as "
        f"{whose}; its model card may say otherwise: {asks} of pyenc.load, or {options}, says what "
        f"is right{beside}"
    )


def _says_more(recipe: Recipe) -> bool:
    """Whether files beside `modules.json` say something of its texts."""
    said = (recipe.max_length, recipe.prompts, recipe.default_prompt_name, recipe.truncate_dim)
    return any(said) or recipe.lower_case or bool(recipe.tokenizer_settings)


def _classifier(classes: object) -> str:
    """The class that `architectures` names, if it is a classifier's."""
    first = classes[0] if isinstance(classes, list) and classes else None
    return first if isinstance(first, str) and first.endswith("ForSequenceClassification") else ""


def recipe_files(files: Mapping[str, bytes], recipe: Recipe, width: int) -> dict[str, bytes]:
    """The sentence-transformers files that say a recipe's pooling, normalisation and whether its
    prompts count.

    Args:
        files: relative path -> content of what the checkpoint came with.
        recipe: what they are to say; its other steps stay as the files have them.
        width: of the token states.
    """
    listed = json.loads(files["modules.json"]) if "modules.json" in files else []
    modules = [m for m in listed if kind_of(m) != "Normalize"]
    if not modules:
        modules = [_module(0, "Transformer", ""), _module(1, "Pooling", "1_Pooling")]
    if recipe.normalize:
        at = 1 + max(int(module.get("idx", number)) for number, module in enumerate(modules))
        names = {str(module.get("name")) for module in modules}
        name = next(str(n) for n in count(at) if str(n) not in names)
        modules.append(_module(at, "Normalize", f"{at}_Normalize") | {"name": name})
    pooling = next((m for m in modules if kind_of(m) == "Pooling"), None)
    where = "" if pooling is None else folder_below(pooling.get("path", ""))
    if not where:
        raise CheckpointError("modules.json: the Pooling module has no folder to be written to")
    path = f"{where}/config.json"
    config = json.loads(files[path]) if path in files else {"word_embedding_dimension": width}
    config = {k: v for k, v in config.items() if k not in (*POOLING_FLAGS, "pooling_mode")}
    config |= _said_poolings(recipe.poolings)
    if not recipe.include_prompt:
        config["include_prompt"] = False
    return {"modules.json": _json(modules), path: _json(config)}


def _said_poolings(poolings: tuple[str, ...]) -> dict[str, Any]:
    """The keys of a Pooling's file that say them: the older ones, which every sentence-transformers
    reads, and which have an order of their own; the newer one where theirs is another."""
    flags = {flag: mode in poolings for flag, mode in POOLING_FLAGS.items()}
    if tuple(mode for flag, mode in POOLING_FLAGS.items() if flags[flag]) == poolings:
        return flags
    return {"pooling_mode": list(poolings)}


def limit_file(files: Mapping[str, bytes], recipe: Recipe, limit: int) -> dict[str, bytes]:
    """The sentence-transformers file that says the maximum length."""
    below = f"{recipe.transformer_path}/".lstrip("/")
    paths = [f"{below}sentence_{name}_config.json" for name in SENTENCE_CONFIGS]
    # The one that is read; an empty one is passed over.
    path = next((p for p in paths if p in files and json.loads(files[p])), paths[0])
    config: dict[str, Any] = {"do_lower_case": recipe.lower_case}
    if path in files:
        config = json.loads(files[path])
    config["max_seq_length"] = limit
    for key in TOKENIZER_SETTINGS:  # what these say comes before it
        if "model_max_length" in (config.get(key) or {}):
            config[key] = config[key] | {"model_max_length": limit}
    return {path: _json(config)}


def _module(index: int, kind: str, path: str) -> dict[str, Any]:
    return {"idx": index, "name": str(index), "path": path, "type": KINDS + kind}


def _json(content: Any) -> bytes:
    return (json.dumps(content, indent=2) + "\n").encode()
