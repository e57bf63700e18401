"""How a checkpoint turns text into one vector: what its sentence-transformers files say.

`modules.json` lists the steps, `1_Pooling/config.json` the pooling, `2_Dense/` and `2_LayerNorm/`
optional layers, `sentence_bert_config.json` the maximum length,
`config_sentence_transformers.json` the prompts and how vectors are compared. Each is read where it
exists; where none names a pooling, the checkpoint's own serves (`Checkpoint.pooling`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import CheckpointError
from ..loading import read_json
from .dense import Dense, read_dense
from .layer import Layer
from .layer_norm import LayerNorm, read_layer_norm
from .module_list import PPLXS, kind_of, module_paths, read_modules, transformer_folder
from .recipe_keys import (
    POOLING_FLAGS,
    SENTENCE_CONFIGS,
    check_encoder,
    check_normalize,
    check_pooling,
    check_transformer,
    tokenizer_settings,
)
from .similarity import SIMILARITIES

POOLINGS = ("mean", "cls", "max", "lasttoken", "weightedmean", "mean_sqrt_len_tokens")
"""The poolings that are served, each by itself or several side by side."""

SERVED = ("Transformer", "Pooling", "Dense", "LayerNorm", "Normalize")
"""The modules that are served."""

UNSAID_PROMPTS = ("query", "document")
"""Prompts that every model of sentence-transformers has, empty where its files do not say them."""

LONE_POOLING = "1_Pooling/config.json"
"""Read without a `modules.json` too."""


@dataclass(frozen=True)
class Recipe:
    """From hidden states to a vector."""

    pooling: str | tuple[str, ...] = "mean"
    """One of `POOLINGS`, or several, whose vectors stand side by side in this order."""
    include_prompt: bool = True
    """Whether the tokens of a prompt count in the mean."""
    dense: tuple[Layer, ...] = ()
    """The layers that a pooled vector goes through, in order: each a `Dense` or a `LayerNorm`."""
    tanh_bytes: bool = False
    """Whether they then become the whole numbers next to 127 tanh(x): pplx-embed's."""
    normalize: bool = False
    max_length: int | None = None
    lower_case: bool = False
    tokenizer_settings: dict[str, Any] = field(default_factory=dict)
    """What the recipe's own files put over those of `tokenizer_config.json`."""
    truncate_dim: int | None = None
    """How many dimensions of a vector are kept, after normalising, where the call does not say."""
    prompts: dict[str, str] = field(default_factory=dict)
    default_prompt_name: str | None = None
    similarity: str = "cosine"
    """How its vectors are compared: one of `SIMILARITIES`."""
    assumed: tuple[str, ...] = ()
    """Which of "pooling" and "normalize" no file says."""
    transformer_path: str = ""
    """Where the encoder's own files are, below the checkpoint's folder."""

    @property
    def poolings(self) -> tuple[str, ...]:
        """One or more of `POOLINGS`."""
        return (self.pooling,) if isinstance(self.pooling, str) else tuple(self.pooling)

    def width(self, hidden: int) -> int:
        """How wide vectors are of token states that are so wide."""
        return self.dense[-1].gives if self.dense else hidden * len(self.poolings)


def one_or_several(poolings: str | Sequence[str]) -> str | tuple[str, ...]:
    """As a `Recipe` has it: several of one are that one."""
    if isinstance(poolings, str):
        return poolings
    return poolings[0] if len(poolings) == 1 else tuple(poolings)


def says_pooling(folder: Path) -> bool:
    """Is there a file that says how token states are pooled? Else it is assumed."""
    return any((folder / name).is_file() for name in ("modules.json", LONE_POOLING))


def read_recipe(
    folder: Path,
    unsaid_pooling: str = "mean",
    said_pooling: str | tuple[str, ...] | None = None,
) -> Recipe:
    """The recipe of a checkpoint folder.

    Args:
        folder: the checkpoint's folder.
        unsaid_pooling: the pooling of a checkpoint whose files name none.
        said_pooling: one that comes before the files': theirs may be one that is not served.

    Raises:
        CheckpointError: a file is damaged or asks for a step that is not served.
    """
    modules_path = folder / "modules.json"
    if not modules_path.is_file():
        pooling = folder / LONE_POOLING
        found: dict[str, Any] = {"pooling": unsaid_pooling, "assumed": ("pooling",)}
        if pooling.is_file():
            found = _pooling(pooling, said_pooling)
        found["assumed"] += ("normalize",)
        return Recipe(**found, **_limits(folder), **_prompts(folder))
    prompts = _prompts(folder)  # first: another kind of model has other modules
    fields: dict[str, Any] = {"normalize": False, "tanh_bytes": False}
    layers: list[Layer] = []
    for module in read_modules(modules_path):
        kind, path = kind_of(module), module["path"]
        if kind not in (*SERVED, PPLXS):
            raise CheckpointError(
                f"{modules_path}: module {module['type']!r} is not served; served, of "
                f"sentence_transformers: {', '.join(SERVED)}"
            )
        if fields["normalize"] and kind != "Normalize":  # twice is as once
            raise CheckpointError(f"{modules_path}: {kind} after Normalize is not served")
        if (kind == "Transformer") == ("transformer_path" in fields):
            raise CheckpointError(f"{modules_path}: expected one Transformer, as the first module")
        if (kind == "Pooling") == ("pooling" in fields) and kind != "Transformer":
            raise CheckpointError(f"{modules_path}: expected one Pooling, after the Transformer")
        if fields["tanh_bytes"] and kind != "Normalize":
            raise CheckpointError(f"{modules_path}: {kind} after {PPLXS} is not served")
        if kind == "Transformer":
            fields["transformer_path"] = path
        elif kind == "Pooling":
            fields |= _pooling(folder / path / "config.json", said_pooling)
        elif kind == "Dense":
            layers.append(read_dense(folder / path))
        elif kind == PPLXS:
            fields["tanh_bytes"] = True
        elif kind == "LayerNorm":
            layers.append(read_layer_norm(folder / path))
        else:
            check_normalize(folder / path / "config.json", own=bool(path))
            fields["normalize"] = True
    if "pooling" not in fields:
        raise CheckpointError(
            f"{modules_path}: no Pooling module; expected one, which makes a vector of the states "
            "of tokens (rerankers and late interaction are for pyenc.accelerate)"
        )
    limits = _limits(folder / fields["transformer_path"])
    return Recipe(**fields, **limits, **prompts, dense=tuple(layers))


def _pooling(path: Path, said: str | tuple[str, ...] | None) -> dict[str, Any]:
    config = read_json(path)
    modes = config.get("pooling_mode") if said is None else said
    assumed: tuple[str, ...] = ()
    if said is None:
        check_pooling(path, config)
    if modes is None:
        modes = [mode for flag, mode in POOLING_FLAGS.items() if config.get(flag)]
        # sentence-transformers takes the mean then.
        modes, assumed = (modes, ()) if modes else (["mean"], ("pooling",))
    several = [modes] if isinstance(modes, str) else modes
    if (
        not isinstance(several, (list, tuple))
        or not several
        or any(mode not in POOLINGS for mode in several)
    ):
        raise CheckpointError(
            f"{path}: pooling {modes!r} is not served; served: one or more of {', '.join(POOLINGS)}"
        )
    include = config.get("include_prompt", True)
    if not isinstance(include, bool):
        raise CheckpointError(f"{path}: include_prompt must be true or false, got {include!r}")
    return {"pooling": one_or_several(several), "include_prompt": include, "assumed": assumed}


def _limits(folder: Path) -> dict[str, Any]:
    # One name for each architecture that sentence-transformers once knew, in its order.
    named = [folder / f"sentence_{name}_config.json" for name in SENTENCE_CONFIGS]
    for path in [path for path in named if path.is_file()]:
        config = read_json(path)
        if not config:  # as there: an empty one says nothing, and the next is asked
            continue
        check_transformer(path, config)
        limit = config.get("max_seq_length")
        if limit is not None and (type(limit) is not int or limit < 1):
            raise CheckpointError(
                f"{path}: max_seq_length must be a positive whole number, got {limit!r}"
            )
        settings = tokenizer_settings(path, config)
        if "model_max_length" in settings:
            limit = None  # as there: the tokenizer's argument is the one that counts
        return {
            "max_length": limit,
            "lower_case": config.get("do_lower_case") or False,
            "tokenizer_settings": settings,
        }
    return {}


def _prompts(folder: Path) -> dict[str, Any]:
    path = folder / "config_sentence_transformers.json"
    if not path.is_file():
        return {}
    config = read_json(path)
    check_encoder(path, config)
    prompts = config.get("prompts") or {}
    default = config.get("default_prompt_name")
    if isinstance(prompts, dict):  # null is an empty prompt there
        prompts = {name: "" if prompt is None else prompt for name, prompt in prompts.items()}
    if not isinstance(prompts, dict) or not all(isinstance(p, str) for p in prompts.values()):
        raise CheckpointError(f"{path}: prompts must be strings by name, got {prompts!r}")
    # As there, where a "query" and a "document" are empty if no file says them.
    known = {*prompts, *UNSAID_PROMPTS}
    if default is not None and (not isinstance(default, str) or default not in known):
        raise CheckpointError(
            f"{path}: default_prompt_name {default!r} is not among the prompts {list(prompts)}"
        )
    dim = config.get("truncate_dim")
    if dim is not None and (type(dim) is not int or dim < 1):
        raise CheckpointError(f"{path}: truncate_dim must be a positive whole number, got {dim!r}")
    similarity = config.get("similarity_fn_name") or "cosine"
    if similarity not in SIMILARITIES:
        raise CheckpointError(
            f"{path}: similarity_fn_name {similarity!r:.80} is not served; served: "
            f"{', '.join(SIMILARITIES)}"
        )
    return {
        "prompts": prompts, "default_prompt_name": default, "truncate_dim": dim,
        "similarity": similarity,
    }  # fmt: skip


__all__ = [
    "LONE_POOLING",
    "POOLINGS",
    "POOLING_FLAGS",
    "UNSAID_PROMPTS",
    "Dense",
    "LayerNorm",
    "Recipe",
    "module_paths",
    "one_or_several",
    "read_recipe",
    "says_pooling",
    "transformer_folder",
]
