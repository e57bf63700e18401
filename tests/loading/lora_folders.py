"""Adapters of peft as it writes them, made of random numbers, and what they make of a weight."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from pyenc.loading import load_checkpoint
from tests.conftest import GOLDEN

PREFIX = "base_model.model."
"""What peft puts before every name."""

BASE = "bert_mean_h4"
QUERY = "encoder.layer.0.attention.self.query"
DOWN = "encoder.layer.1.output.dense"
WORDS = "embeddings.word_embeddings"
RANK, ALPHA = 3, 5

SAID: dict[str, Any] = {
    "alpha_pattern": {}, "auto_mapping": None, "bias": "none", "fan_in_fan_out": False,
    "inference_mode": True, "init_lora_weights": True, "layers_pattern": None,
    "layers_to_transform": None, "loftq_config": {}, "lora_alpha": ALPHA, "lora_bias": False,
    "lora_dropout": 0.1, "megatron_config": None, "megatron_core": "megatron.core",
    "modules_to_save": None, "peft_type": "LORA", "qalora_group_size": 16, "r": RANK,
    "rank_pattern": {}, "revision": None, "task_type": "FEATURE_EXTRACTION", "use_dora": False,
    "use_rslora": False,
}  # fmt: skip
"""`adapter_config.json` as peft has it, but for the base."""


def base_tensors(base: str | Path = BASE) -> dict[str, Tensor]:
    return load_file(GOLDEN / base / "model.safetensors")


def changes(
    modules: Sequence[str] = (QUERY, DOWN, WORDS),
    *,
    base: str | Path = BASE,
    rank: int | Mapping[str, int] = RANK,
    lengths: bool = False,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
) -> dict[str, Tensor]:
    """The tensors of changes to some modules of a base, by peft's names."""
    generator = torch.Generator().manual_seed(seed)
    stored, found = base_tensors(base), {}
    for module in modules:
        rows, width = stored[f"{module}.weight"].shape
        r = rank if isinstance(rank, int) else rank.get(module, RANK)
        embedding = "embed" in module.rpartition(".")[2]
        a, b = (torch.randn(s, generator=generator) for s in ((r, width), (rows, r)))
        if embedding:
            a, b = (torch.randn(s, generator=generator) for s in ((r, rows), (width, r)))
        ends = (
            ("lora_embedding_A", "lora_embedding_B")
            if embedding
            else ("lora_A.weight", "lora_B.weight")
        )
        for end, tensor in zip(ends, (a, b), strict=True):
            found[f"{PREFIX}{module}.{end}"] = (tensor / 4).to(dtype)
        if lengths:
            many = torch.rand(width if embedding else rows, generator=generator) + 0.5
            found[f"{PREFIX}{module}.lora_magnitude_vector"] = many.to(dtype)
    return found


def of_own(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """As peft saves what was trained on an `Encoder`."""
    return {f"{PREFIX}{name}": tensor for name, tensor in tensors.items()}


def adapter(
    folder: Path, tensors: Mapping[str, Tensor], base: str | Path | None = None, **said: Any
) -> Path:
    """A folder with an adapter in it; a key that is said to be ... is left out.

    Its `target_modules` are the last words of what it changes, where nothing else is said.
    """
    folder.mkdir(parents=True, exist_ok=True)
    where = GOLDEN / BASE if base is None else base
    changed = {name.partition(".lora_")[0] for name in tensors if ".lora_" in name}
    targets = sorted({module.rpartition(".")[2] for module in changed})
    config = SAID | {"base_model_name_or_path": str(where), "target_modules": targets} | said
    config = {key: value for key, value in config.items() if value is not ...}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    save_file(dict(tensors), folder / "adapter_model.safetensors", metadata={"format": "pt"})
    return folder


def weights(folder: Path, base: Path = GOLDEN / BASE, **how: Any) -> dict[str, Tensor]:
    """By published names, as they would be saved."""
    checkpoint = load_checkpoint(base, adapter=folder, device="cpu", **how)
    state = checkpoint.encoder.state_dict()
    found: dict[str, Tensor] = {}
    for parameter, names in checkpoint.sources.items():
        rows = state[parameter].chunk(len(names)) if len(names) > 1 else [state[parameter]]
        found |= dict(zip(names, rows, strict=True))
    return found


def merged(
    weight: Tensor, tensors: Mapping[str, Tensor], module: str, *,
    alpha: float = ALPHA, rooted: bool = False,
) -> Tensor:  # fmt: skip
    """The formula, in doubles: W + alpha / r B A, and of DoRA every output's row brought to its
    length."""
    own = {
        name.removeprefix(f"{PREFIX}{module}."): tensor.double()
        for name, tensor in tensors.items()
        if name.startswith(f"{PREFIX}{module}.")
    }
    embedding = "lora_embedding_A" in own
    a, b = (own[f"lora_embedding_{x}" if embedding else f"lora_{x}.weight"] for x in "AB")
    rank = a.shape[0]
    change = (b @ a) * (alpha / (math.sqrt(rank) if rooted else rank))
    new = weight.double() + (change.T if embedding else change)
    if "lora_magnitude_vector" in own:
        outputs = new.T if embedding else new
        outputs = outputs / outputs.norm(dim=1, keepdim=True)
        outputs = outputs * own["lora_magnitude_vector"][:, None]
        new = outputs.T if embedding else outputs
    return new
