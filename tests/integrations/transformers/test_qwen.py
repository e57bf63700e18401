"""Qwen against transformers' own classes: every field of their configurations, odd sizes at random,
and rows padded on either side."""

from __future__ import annotations

import dataclasses
import json
import random
from pathlib import Path
from typing import Any

import pytest

from pyenc.errors import CheckpointError
from pyenc.loading import load_checkpoint
from tests.integrations.transformers.language_models import check_same, random_model, saved
from tests.seeds import seed

transformers = pytest.importorskip("transformers", minversion="5")
OWN: dict[str, dict[str, Any]] = {"Qwen3": {"head_dim": 10}, "Qwen2": {}}
"""Classes of transformers -> what their configurations have besides."""

HONOURED: dict[str, list[Any]] = {
    "vocab_size": [61],
    "hidden_size": [24, 32],
    "intermediate_size": [40, 7],
    "num_hidden_layers": [1, 3],
    "num_attention_heads": [2, 4],
    "num_key_value_heads": [None, 1, 4],
    "hidden_act": ["gelu", "gelu_new", "relu", "silu"],
    "max_position_embeddings": [64, 99],
    "rms_norm_eps": [1e-2, 0.0],
    "pad_token_id": [None, 0, 60],
    "tie_word_embeddings": [True, False],
    "rope_parameters": [
        {"rope_theta": 20.0, "rope_type": "default"}, {"rope_theta": 1e6, "rope_type": "default"},
        {"rope_theta": 500.0, "rope_type": "linear", "factor": 2.0},
        {
            "rope_theta": 500.0, "rope_type": "yarn", "factor": 4.0,
            "original_max_position_embeddings": 16,
        },
    ],
    "attention_dropout": [0.0, 0.25],
    "use_sliding_window": [False],
    "sliding_window": [1, 5, 6, 100],
    "max_window_layers": [0, 2, 3],
    "layer_types": [
        ["sliding_attention", "full_attention", "sliding_attention"], ["full_attention"] * 3,
    ],
    "is_causal": [True, False],
}  # fmt: skip
"""Fields that decide what is computed -> values with which the answers are the classes'."""

OF_QWEN3 = {"attention_bias": [True], "head_dim": [4, 6, 14]}

NOT_SERVED: dict[str, list[Any]] = {
    "hidden_act": ["quick_gelu"],
    "rope_parameters": [
        {"rope_theta": 500.0, "rope_type": "dynamic", "factor": 2.0},
        {
            "rope_theta": 500.0, "rope_type": "longrope", "factor": 4.0, "short_factor": [1.0] * 5,
            "long_factor": [2.0] * 5, "original_max_position_embeddings": 16,
        },
    ],
}  # fmt: skip

WITHOUT_EFFECT: dict[str, Any] = {
    "initializer_range": 0.5, "use_cache": False, "bos_token_id": 3, "eos_token_id": [3, 4],
}  # fmt: skip
"""Fields that change no hidden state of the classes."""

WINDOWS = {"sliding_window", "max_window_layers", "layer_types"}
CASES = [
    (kind, key, value)
    for kind in OWN
    for key, values in (HONOURED | (OF_QWEN3 if kind == "Qwen3" else {})).items()
    for value in values
]


def original(kind: str = "Qwen3", task: str = "ForCausalLM", **changes: Any) -> Any:
    return random_model(kind, task, **(OWN[kind] | changes))


@pytest.mark.parametrize("kind", OWN)
def test_every_field_is_here(kind: str) -> None:
    theirs = {field.name for field in dataclasses.fields(getattr(transformers, f"{kind}Config"))}
    own = theirs - {field.name for field in dataclasses.fields(transformers.PreTrainedConfig)}
    known = HONOURED.keys() | OF_QWEN3.keys() if kind == "Qwen3" else HONOURED.keys()
    assert own <= known | WITHOUT_EFFECT.keys()
    assert len(own) > 15


@pytest.mark.parametrize(("kind", "key", "value"), CASES)
def test_a_field_is_honoured(kind: str, key: str, value: Any, tmp_path: Path) -> None:
    windows = {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1}
    model = original(kind, **((windows if key in WINDOWS else {}) | {key: value}))
    check_same(model, saved(model, tmp_path))


@pytest.mark.parametrize("key", WITHOUT_EFFECT)
def test_a_field_without_effect(key: str, tmp_path: Path) -> None:
    model = original(**{key: WITHOUT_EFFECT[key]})
    check_same(model, saved(model, tmp_path))


@pytest.mark.parametrize(
    ("key", "value"), [(key, value) for key, values in NOT_SERVED.items() for value in values]
)
def test_a_value_is_refused(key: str, value: Any, tmp_path: Path) -> None:
    folder = saved(original(**{key: value}), tmp_path)
    with pytest.raises(CheckpointError, match=f"config.json: {key}"):
        load_checkpoint(folder)


@pytest.mark.parametrize("number", range(8))
@pytest.mark.parametrize("kind", OWN)
def test_odd_sizes(kind: str, number: int, tmp_path: Path) -> None:
    """Sizes at random, most of them no multiple of anything; not so few channels that a norm of
    them makes much of float32's rounding."""
    some = random.Random(f"{seed(number)} {kind}")
    kept, head = some.randint(1, 3), 2 * some.randint(9 if kind == "Qwen2" else 1, 37)
    heads = kept * some.randint(1, 4)
    sizes: dict[str, Any] = {
        "vocab_size": some.randint(9, 300), "num_hidden_layers": some.randint(1, 4),
        "num_attention_heads": heads, "num_key_value_heads": kept,
        "intermediate_size": some.randint(5, 90),
        "rope_parameters": {"rope_theta": some.choice([50.0, 1e4, 1e6]), "rope_type": "default"},
        "rms_norm_eps": some.choice([1e-6, 1e-3]),
        "use_sliding_window": some.random() < 0.5, "sliding_window": some.randint(1, 20),
        "max_window_layers": some.randint(0, 3),
    }  # fmt: skip
    sizes |= {"hidden_size": some.randint(17, 70), "head_dim": head, "attention_bias": heads > 4}
    if kind == "Qwen2":
        del sizes["head_dim"], sizes["attention_bias"]
        sizes["hidden_size"] = heads * head
    model = original(kind, **sizes)
    check_same(model, saved(model, tmp_path))


def test_what_a_file_leaves_open(tmp_path: Path) -> None:
    """Is what the class takes: 10,000 for the base, causal, no windows."""
    model = original(rope_parameters={"rope_theta": 10_000.0, "rope_type": "default"})
    folder = saved(model, tmp_path)
    path = folder / "config.json"
    said = json.loads(path.read_text())
    for key in ("rope_parameters", "layer_types", "use_sliding_window", "sliding_window",
                "max_window_layers", "attention_bias", "rms_norm_eps", "hidden_act"):  # fmt: skip
        said.pop(key, None)
    path.write_text(json.dumps(said))
    check_same(transformers.Qwen3ForCausalLM.from_pretrained(folder).eval(), folder)
    path.write_text(json.dumps(said | {"rope_theta": 50, "rope_scaling": None}))
    check_same(transformers.Qwen3ForCausalLM.from_pretrained(folder).eval(), folder)
