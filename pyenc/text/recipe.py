"""How a checkpoint turns text into one vector: what its sentence-transformers files say.

`modules.json` lists the steps, `1_Pooling/config.json` the pooling, `2_Dense/` an optional linear
layer, `sentence_bert_config.json` the maximum length, `config_sentence_transformers.json` the
prompts and how vectors are compared. Each is read where it exists; where none names a pooling, the
family's own serves.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import CheckpointError
from ..loading import read_json
from ..loading.weights import WeightFiles
from ..loading.wrappers import modern_names
from ..ops.validation import FLOATS
from .recipe_keys import SENTENCE_CONFIGS, check_encoder, check_transformer, tokenizer_settings
from .similarity import SIMILARITIES

POOLING_FLAGS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
POOLINGS = ("mean", "cls", "max", "lasttoken")
"""The poolings that are served."""

LONE_POOLING = "1_Pooling/config.json"
"""Read without a `modules.json` too."""

DENSE_ACTIVATIONS = {"Identity": None, "Tanh": torch.tanh, "ReLU": torch.relu}


@dataclass(frozen=True, eq=False)
class Dense:
    """A linear layer after pooling: activation(x W^T + b), in float32."""

    weight: Tensor  # (out, in)
    bias: Tensor | None  # (out,)
    activation: str

    def __call__(self, x: Tensor) -> Tensor:
        y = torch.nn.functional.linear(x, *self._as(x))
        function = DENSE_ACTIVATIONS[self.activation]
        return y if function is None else function(y)

    def _as(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """(weight, bias) where x is and in its dtype; a copy is kept, since the next one would wait
        for a GPU."""
        own = [each for each in (self.weight, self.bias) if each is not None]
        versions = (0 if each.is_inference() else each._version for each in own)
        key = x.device, x.dtype, *versions
        kept = self.__dict__.get("_kept")
        if kept is None or kept[0] != key:
            kept = key, self.weight.to(x), None if self.bias is None else self.bias.to(x)
            object.__setattr__(self, "_kept", kept)  # frozen, but for this
        return kept[1], kept[2]

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_kept"}

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Dense):
            return NotImplemented
        pairs = ((self.weight, other.weight), (self.bias, other.bias))
        return self.activation == other.activation and all(
            a is b or (a is not None and b is not None and torch.equal(a, b)) for a, b in pairs
        )


@dataclass(frozen=True)
class Recipe:
    """From hidden states to a vector."""

    pooling: str = "mean"
    include_prompt: bool = True
    """Whether the tokens of a prompt count in the mean."""
    dense: tuple[Dense, ...] = ()
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


def read_recipe(
    folder: Path, family_pooling: str = "mean", said_pooling: str | None = None
) -> Recipe:
    """The recipe of a checkpoint folder.

    Args:
        folder: the checkpoint's folder.
        family_pooling: the pooling of a checkpoint whose files name none.
        said_pooling: one that comes before the files': theirs may be one that is not served.

    Raises:
        CheckpointError: a file is damaged or asks for a step that is not served.
    """
    modules_path = folder / "modules.json"
    if not modules_path.is_file():
        pooling = folder / LONE_POOLING
        found: dict[str, Any] = {"pooling": family_pooling, "assumed": ("pooling",)}
        if pooling.is_file():
            found = _pooling(pooling, said_pooling)
        found["assumed"] += ("normalize",)
        return Recipe(**found, **_limits(folder), **_prompts(folder))
    fields: dict[str, Any] = {"normalize": False}
    dense: list[Dense] = []
    for module in _modules(modules_path):
        kind, path = module["type"].rsplit(".", 1)[-1], module.get("path", "")
        if fields["normalize"] and kind != "Normalize":  # twice is as once
            raise CheckpointError(f"{modules_path}: {kind} after Normalize is not served")
        if (kind == "Transformer") == ("transformer_path" in fields):
            raise CheckpointError(f"{modules_path}: expected one Transformer, as the first module")
        if (kind == "Pooling") == ("pooling" in fields) and kind != "Transformer":
            raise CheckpointError(f"{modules_path}: expected one Pooling, after the Transformer")
        if kind == "Transformer":
            fields["transformer_path"] = path
        elif kind == "Pooling":
            fields |= _pooling(folder / path / "config.json", said_pooling)
        elif kind == "Dense":
            dense.append(_dense(folder / path))
        elif kind == "Normalize":
            fields["normalize"] = True
        else:
            raise CheckpointError(
                f"{modules_path}: module {module['type']!r} is not served; known: Transformer, "
                "Pooling, Dense, Normalize"
            )
    if "pooling" not in fields:
        raise CheckpointError(f"{modules_path}: no Pooling module")
    limits = _limits(folder / fields["transformer_path"])
    return Recipe(**fields, **limits, **_prompts(folder), dense=tuple(dense))


def transformer_folder(folder: Path) -> Path:
    """Where the encoder's own files are: the folder, or what `modules.json` says."""
    path = folder / "modules.json"
    if path.is_file():
        for module in _modules(path):
            if module["type"].endswith(".Transformer"):
                return folder / module.get("path", "")
    return folder


def module_paths(folder: Path) -> list[str]:
    """The sub-folders that `modules.json` names: what saving must carry along."""
    path = folder / "modules.json"
    if not path.is_file():
        return []
    return [m["path"] for m in _modules(path) if m.get("path")]


def _modules(path: Path) -> list[dict[str, Any]]:
    try:
        modules = json.loads(path.read_text("utf-8"))
        modules = sorted(modules, key=lambda module: int(module.get("idx", 0)))
        for module in modules:
            where, kind = module.get("path", ""), module["type"]
            if not isinstance(where, str) or not isinstance(kind, str):
                raise TypeError("type and path must be strings")
            if not (path.parent / where).resolve().is_relative_to(path.parent.resolve()):
                raise ValueError(f"path {where!r} leads out of the folder")
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, OSError) as error:
        raise CheckpointError(f"{path}: not a readable list of modules: {error!r}") from error
    return modules


def _pooling(path: Path, said: str | None) -> dict[str, Any]:
    config = read_json(path)
    modes = config.get("pooling_mode") if said is None else said
    assumed: tuple[str, ...] = ()
    if modes is None:
        modes = [mode for flag, mode in POOLING_FLAGS.items() if config.get(flag)]
        # sentence-transformers takes the mean then.
        modes, assumed = (modes, ()) if modes else (["mean"], ("pooling",))
    modes = [modes] if isinstance(modes, str) else modes
    if not isinstance(modes, list) or len(modes) != 1 or modes[0] not in POOLINGS:
        raise CheckpointError(
            f"{path}: pooling {modes!r} is not served; served: one of {', '.join(POOLINGS)}"
        )
    include = config.get("include_prompt", True)
    if not isinstance(include, bool):
        raise CheckpointError(f"{path}: include_prompt must be true or false, got {include!r}")
    return {"pooling": modes[0], "include_prompt": include, "assumed": assumed}


def _dense(folder: Path) -> Dense:
    config = read_json(folder / "config.json")
    name = str(config.get("activation_function", "torch.nn.modules.activation.Tanh"))
    activation = name.rsplit(".", 1)[-1]
    if activation not in DENSE_ACTIVATIONS:
        raise CheckpointError(
            f"{folder / 'config.json'}: activation_function {name!r} is not served; served: "
            f"{', '.join(DENSE_ACTIVATIONS)}"
        )
    files = WeightFiles(folder)
    names = modern_names(files.names, folder)
    wanted = {"linear.weight", "linear.bias"} if config.get("bias", True) else {"linear.weight"}
    if names.keys() != wanted:
        raise CheckpointError(
            f"{files.file_of('')}: tensors {sorted(files.names)}, expected {sorted(wanted)}"
        )
    for name in files.names:
        if files.read(name).dtype not in FLOATS:
            raise CheckpointError(
                f"{files.file_of(name)}: tensor {name!r} is {files.read(name).dtype}, not served"
            )
    weight = files.read(names["linear.weight"]).float()
    shape = (config.get("out_features"), config.get("in_features"))
    if tuple(weight.shape) != shape:
        raise CheckpointError(
            f"{files.file_of(names['linear.weight'])}: tensor 'linear.weight' has shape "
            f"{tuple(weight.shape)}, but config.json asks for {shape}"
        )
    bias = None
    if "linear.bias" in wanted:
        bias = files.read(names["linear.bias"]).float().clone()
    for name, tensor in (("linear.weight", weight), ("linear.bias", bias)):
        if tensor is not None and not bool(torch.isfinite(tensor).all()):
            raise CheckpointError(f"{files.file_of(names[name])}: tensor {name!r} is not finite")
    return Dense(weight.clone(), bias, activation)


def _limits(folder: Path) -> dict[str, Any]:
    # One name for each architecture that sentence-transformers once knew, in its order.
    named = [folder / f"sentence_{name}_config.json" for name in SENTENCE_CONFIGS]
    for path in [path for path in named if path.is_file()]:
        config = read_json(path)
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
    if default is not None and (not isinstance(default, str) or default not in prompts):
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
