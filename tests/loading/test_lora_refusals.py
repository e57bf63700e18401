"""LoRA adapters of peft that are refused, by key and tensor; and keys that change nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import pyenc
from pyenc.errors import CheckpointError
from pyenc.loading import load_checkpoint
from tests.conftest import GOLDEN
from tests.loading.lora_folders import (
    BASE,
    DOWN,
    PREFIX,
    QUERY,
    RANK,
    WORDS,
    adapter,
    changes,
    of_own,
    weights,
)  # fmt: skip
from tests.loading.test_strict import copied


def test_weights_with_tasks_are_no_base(tmp_path: Path) -> None:
    folder = adapter(tmp_path, changes())
    with pytest.raises(CheckpointError, match=r"adapters of tasks .*; task= chooses among those"):
        load_checkpoint(GOLDEN / "jinav3_lora_like_h2", adapter=folder)


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"peft_type": "IA3"}, r"adapter_config.json: peft_type 'IA3' is not served; served: 'LORA'"),
    ({"peft_type": ...}, r"peft_type None is not served"),
    ({"use_qalora": True}, r"use_qalora is True, which is not served: it may change the vectors"),
    ({"alora_invocation_tokens": [5, 7]}, r"alora_invocation_tokens is \[5, 7\], which is not"),
    ({"trainable_token_indices": [1]}, r"trainable_token_indices is \[1\], which is not served"),
    ({"layer_replication": [[0, 1]]}, r"layer_replication is \[\[0, 1\]\], which is not served"),
    ({"target_parameters": ["experts"]}, r"target_parameters is \['experts'\], which is not"),
    ({"of_next_year": 0.5}, r"of_next_year is 0.5, which is not served: it may change"),
    ({"init_lora_weights": "pissa"}, r"init_lora_weights is 'pissa', which changed the base's own"),
    ({"init_lora_weights": "olora"}, r"init_lora_weights is 'olora', which changed"),
    ({"init_lora_weights": "loftq"}, r"init_lora_weights is 'loftq', which changed"),
    ({"r": 0}, r"adapter_config.json: r must be a whole number from 1 .* got 0"),
    ({"r": "4"}, r"adapter_config.json: r must be a whole number"),
    ({"r": 4}, r"lora_embedding_A' has shape \(3, 128\), but .* ask for \(4, 128\)"),
    ({"lora_alpha": -1}, r"lora_alpha must be a number, finite and >= 0, got -1"),
    ({"lora_alpha": float("nan")}, r"lora_alpha must be a number, finite"),
    ({"rank_pattern": {"query": 0}}, r"rank_pattern: query must be a whole number from 1"),
    ({"rank_pattern": [3]}, r"rank_pattern must be an object or null, got \[3\]"),
    ({"rank_pattern": {"(": 3}}, r"rank_pattern: '\(' is no pattern: "),
    ({"alpha_pattern": {"(?i)query": 3}}, r"alpha_pattern: '\(\?i\)query' is no pattern: "),
    ({"lora_alpha": 10**308}, r"lora_alpha is 1e\+308, more than float32 holds"),
    ({"alpha_pattern": {"query": 1e308}}, r"alpha_pattern: query is 1e\+308, more than float32"),
    ({"target_modules": "(("}, r"target_modules: '\(\(' is no pattern"),
    ({"target_modules": r".*\.key"}, r"which is not among target_modules of"),
    ({"modules_to_save": "key"}, r"modules_to_save must be a list of strings or null, got 'key'"),
    (
        {"target_modules": ["query", "dense", "word_embeddings", "value"]},
        r"no tensors of 'value', which target_modules of .* lists and .*bert_mean_h4 has",
    ),
    ({"modules_to_save": ["key"]}, r"no tensors of 'key', which modules_to_save of .* lists"),
    ({"revision": 3}, r"revision must be a string, got 3"),
    ({"alpha_pattern": {"query": "x"}}, r"alpha_pattern: query must be a number"),
    ({"use_rslora": 1}, r"use_rslora must be true or false, got 1"),
    ({"use_dora": "no"}, r"use_dora must be true or false, got 'no'"),
    ({"use_dora": True}, r"has no .*word_embeddings.lora_magnitude_vector beside it"),
    ({"target_modules": ["key"]}, r"changes '.*embeddings', which is not among target_modules of"),
    ({"exclude_modules": ["query"]}, r"changes '.*query', which is among exclude_modules of"),
    ({"exclude_modules": r".*\.query"}, r"changes '.*query', which is among exclude_modules of"),
    ({"exclude_modules": "(("}, r"exclude_modules: '\(\(' is no pattern"),
    ({"exclude_modules": {"query": 1}}, r"exclude_modules must be a list of strings, a string or"),
    (
        {"target_modules": ["query", "dense", "word_embeddings"], "layers_to_transform": [7]},
        r"changes '.*', which is not among layers_to_transform of",
    ),
    ({"layers_to_transform": [-1]}, r"layers_to_transform must be a layer's number, a list of"),
    ({"layers_to_transform": "1"}, r"layers_to_transform must be a layer's number, a list of"),
    ({"layers_pattern": ["(("]}, r"layers_pattern: '\(\(' is no pattern"),
    ({"target_modules": [3]}, r"target_modules must be a list of strings, a string or null"),
]


@pytest.mark.parametrize(("said", "message"), WRONG, ids=[str(said) for said, _ in WRONG])
def test_settings_that_are_refused(tmp_path: Path, said: dict[str, Any], message: str) -> None:
    folder = adapter(tmp_path, changes(), **said)
    for load in (
        lambda: load_checkpoint(GOLDEN / BASE, adapter=folder),
        lambda: pyenc.load(folder),
        lambda: pyenc.load(GOLDEN / BASE, adapter=folder),
    ):
        with pytest.raises(CheckpointError, match=message):
            load()


@pytest.mark.parametrize(
    "said",
    [
        {"use_qalora": False, "layer_replication": None, "target_parameters": [], "new": {}},
        {"target_modules": "all-linear"}, {"target_modules": r".*\.?(query|dense|word_embeddings)"},
        {
            "target_modules": ["query", "dense", "word_embeddings", "value"],
            "exclude_modules": ["value"],
        },
        {"target_modules": None}, {"target_modules": []}, {"modules_to_save": ["classifier"]},
        {"target_modules": ["query", "dense", "word_embeddings", "gate_proj"]}, {"revision": ""},
        {"init_lora_weights": False},
        {"init_lora_weights": "gaussian"}, {"init_lora_weights": "eva", "eva_config": {"rho": 2}},
        {"fan_in_fan_out": True}, {"lora_alpha": 5.0}, {"inference_mode": False},
    ],
    ids=str,
)  # fmt: skip
def test_settings_that_change_nothing(tmp_path: Path, said: dict[str, Any]) -> None:
    tensors = changes()
    plain = weights(adapter(tmp_path / "plain", tensors))
    for name, tensor in weights(adapter(tmp_path / "other", tensors, **said)).items():
        assert torch.equal(tensor, plain[name]), name


def without(end: str) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in changes().items() if not name.endswith(end)}


TENSORS: dict[str, tuple[dict[str, Tensor], str]] = {
    "none": ({}, r": no tensors of LoRA; expected .* got none"),
    "others": ({"x.weight": torch.ones(2)}, r"no tensors of LoRA; .* got x.weight"),
    "half": (without("query.lora_B.weight"), r"query.lora_A.weight' has no .*lora_B.weight beside"),
    "half of rows": (without("embedding_A"), r"lora_embedding_B' has no .*lora_embedding_A beside"),
    "elsewhere": (
        {f"{PREFIX}encoder.layer.9.query.lora_{x}.weight": torch.ones(3, 3) for x in "AB"},
        r"changes 'encoder.layer.9.query', which .*bert_mean_h4 has no weight of",
    ),
    "lengths": (changes(lengths=True), r"lora_magnitude_vector' has no place beside"),
    "tokens": (
        changes() | {f"{PREFIX}{WORDS}.token_adapter.trainable_tokens_delta": torch.ones(2, 64)},
        r"trainable_tokens_delta' is of a kind that is not served",
    ),
    "adapter's name": (
        changes() | {f"{PREFIX}{DOWN}.lora_A.default.weight": torch.ones(3, 96)},
        r"lora_A.default.weight' is of a kind that is not served",
    ),
    "matrix": (
        changes()
        | {f"{PREFIX}embeddings.LayerNorm.dense.lora_A.weight": torch.ones(3, 64)},
        r"changes 'embeddings.LayerNorm.dense', which .* has no weight of",
    ),
    "vector": (
        {f"{PREFIX}embeddings.LayerNorm.lora_{x}.weight": torch.ones(3, 3) for x in "AB"},
        r"embeddings.LayerNorm.weight' of shape \(64,\), and an adapter's changes to matrices",
    ),
    "shape": (
        changes() | {f"{PREFIX}{QUERY}.lora_B.weight": torch.ones(65, 3)},
        r"lora_B.weight' has shape \(65, 3\), but .*query.weight' \(64, 64\) .* \(64, 3\)",
    ),
    "not finite": (
        changes() | {f"{PREFIX}{QUERY}.lora_B.weight": torch.full((64, 3), torch.nan)},
        r"adapter_model.safetensors: tensor '.*query.lora_B.weight' has nan at \(0, 0\)",
    ),
    "whole numbers": (
        changes() | {f"{PREFIX}{QUERY}.lora_B.weight": torch.ones(64, 3, dtype=torch.int8)},
        r"tensor '.*query.lora_B.weight' is torch.int8, which is not served",
    ),
    "bias of rows": (
        changes() | {f"{PREFIX}{WORDS}.lora_B.bias": torch.ones(64)},
        r"word_embeddings.lora_B.bias' has no place beside",
    ),
    "bias": (
        changes() | {f"{PREFIX}{QUERY}.lora_B.bias": torch.ones(65)},
        r"lora_B.bias' has shape \(65,\), but .*query.bias' \(64,\)",
    ),
    "unknown whole": (
        changes() | {f"{PREFIX}encoder.strange.weight": torch.ones(2)},
        r"adapter_model.safetensors: unexpected tensor 'encoder.strange.weight'",
    ),
    "whole shape": (
        changes() | {f"{PREFIX}{QUERY}.bias": torch.ones(65)},
        r"adapter_model.safetensors: tensor '.*query.bias' has shape \(65,\)",
    ),
    "twice": (
        changes() | {f"{QUERY}.lora_A.weight": torch.ones(3, 64)},
        rf"adapter_model.safetensors: tensors '{PREFIX}{QUERY}.lora_A.weight' and "
        rf"'{QUERY}.lora_A.weight' are both of '{QUERY}'; which of the two counts is not "
        r"known; expected it by one name alone",
    ),
    "in parts, by two names": (
        without("query.lora_B.weight")
        | {f"{PREFIX}0.auto_model.{QUERY}.lora_B.weight": torch.ones(64, 3)},
        rf"tensors '.*{QUERY}.lora_[AB].weight' and '.*{QUERY}.lora_[AB].weight' are both of "
        rf"'{QUERY}'; which of the two counts is not known; expected it by one name alone",
    ),
    "twice, by another prefix": (
        {n.replace(PREFIX, f"{PREFIX}bert."): t for n, t in changes().items()}
        | {f"{PREFIX}{QUERY}.lora_{x}.weight": torch.ones(3, 3) for x in "AB"},
        rf"adapter_model.safetensors: tensors '{PREFIX}(bert.)?{QUERY}.lora_A.weight' and "
        rf"'{PREFIX}(bert.)?{QUERY}.lora_A.weight' are both of '{QUERY}.weight'; .* one name alone",
    ),
    "whole twice, by another prefix": (
        {n.replace(PREFIX, f"{PREFIX}bert."): t for n, t in changes().items()}
        | {f"{PREFIX}{p}{QUERY}.bias": torch.ones(64) for p in ("bert.", "")},
        r"query.bias' and '.*query.bias' are both of '.*query.bias'; which of the two",
    ),
    "whole and changed": (
        changes() | {f"{PREFIX}{QUERY}.weight": torch.ones(64, 64)},
        r"changes '.*query', whose weight '.*query.weight' would stand in the place of",
    ),
    "too large": (
        {name: tensor * 1e30 for name, tensor in changes([QUERY]).items()},
        r"adapter_model.safetensors: tensor '.*query.lora_.*' makes infinities or NaN of '.*query",
    ),
    "whole twice": (
        changes() | {f"{p}{QUERY}.bias": torch.ones(64) for p in (PREFIX, "")},
        r"query.bias' and '.*query.bias' are both of '.*query.bias'; which of the two",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", TENSORS)
def test_tensors_that_are_refused(tmp_path: Path, case: str) -> None:
    tensors, message = TENSORS[case]
    folder = adapter(tmp_path, tensors)
    for load in (
        lambda: load_checkpoint(GOLDEN / BASE, adapter=folder),
        lambda: pyenc.load(folder),
    ):
        with pytest.raises(CheckpointError, match=message):
            load()


def test_refused_by_the_encoders_own_names(tmp_path: Path) -> None:
    pair = {
        "layers.0.attention.out.lora_A.weight": torch.ones(RANK, 64),
        "layers.0.attention.out.lora_B.weight": torch.ones(64, RANK),
    }
    cases: list[tuple[dict[str, Tensor], str]] = [
        (
            {"layers.0.norm.weight": torch.ones(64)},
            r"'layers.0.norm.weight' is no parameter of the",
        ),
        ({"layers.0.attention.out.bias": torch.ones(3)}, r"out.bias' has shape \(3,\), but "),
        ({"layers.0.attention.out.bias": torch.full((64,), torch.inf)}, r"has inf at \(0,\)"),
        (
            {f"layers.9.attention.out.lora_{x}.weight": torch.ones(3, 3) for x in "AB"},
            r"changes 'layers.9.attention.out', which .*bert_mean_h4 has no weight of",
        ),
    ]
    for more, message in cases:
        folder = adapter(tmp_path, of_own(pair | more), target_modules=["out"])
        with pytest.raises(CheckpointError, match=message):
            load_checkpoint(GOLDEN / BASE, adapter=folder)


def test_no_bias_to_add_to(tmp_path: Path) -> None:
    name, module = "modernbert_gte_like_h4", "layers.1.attn.Wo"
    tensors = changes([module], base=name)
    tensors[f"{PREFIX}{module}.lora_B.bias"] = torch.ones(
        tensors[f"{PREFIX}{module}.lora_B.weight"].shape[0]
    )
    folder = adapter(tmp_path, tensors, GOLDEN / name, target_modules=["Wo"])
    with pytest.raises(
        CheckpointError, match=r"is added to a bias of '.*Wo', which .* has none of"
    ):
        load_checkpoint(GOLDEN / name, adapter=folder)


def test_an_adapters_folder_is_no_model(tmp_path: Path) -> None:
    """For those who take a folder alone: its changes would be left out."""
    folder = adapter(copied(BASE, tmp_path), changes())
    with pytest.raises(
        CheckpointError, match=r"adapter_config.json: a PEFT adapter, whose changes"
    ):
        load_checkpoint(folder)


def test_files_that_are_missing_or_damaged(tmp_path: Path) -> None:
    folder = adapter(tmp_path / "a", changes())
    (folder / "adapter_model.safetensors").write_bytes(b"x")
    with pytest.raises(
        CheckpointError, match=r"adapter_model.safetensors: not a readable safetens"
    ):
        pyenc.load(folder)
    (folder / "adapter_model.safetensors").unlink()
    missing = r"a: no weights: expected adapter_model.safetensors or adapter_model.bin"
    with pytest.raises(CheckpointError, match=missing):
        pyenc.load(folder)
    (folder / "adapter_config.json").write_text("[")
    with pytest.raises(CheckpointError, match=r"adapter_config.json: not readable JSON"):
        pyenc.load(folder)
    (tmp_path / "b").mkdir()
    none = r"b: no adapter of peft: .*adapter_config.json is missing"
    with pytest.raises(CheckpointError, match=none):
        pyenc.load(GOLDEN / BASE, adapter=tmp_path / "b")
