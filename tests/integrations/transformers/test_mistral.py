"""Mistral and Llama against transformers' own classes: every field of their configurations, odd
sizes at random, and rows padded on either side."""

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
KINDS = ("Mistral", "Llama")

HONOURED: dict[str, list[Any]] = {
    "vocab_size": [61],
    "hidden_size": [24, 32],
    "intermediate_size": [40, 7],
    "num_hidden_layers": [1, 3],
    "num_attention_heads": [2, 4],
    "num_key_value_heads": [1, 4],
    "hidden_act": ["gelu", "gelu_new", "relu", "silu"],
    "max_position_embeddings": [64, 99],
    "rms_norm_eps": [1e-2, 0.0],
    "pad_token_id": [None, 0, 60],
    "tie_word_embeddings": [True, False],
    "rope_parameters": [
        {"rope_theta": 20.0, "rope_type": "default"}, {"rope_theta": 1e6, "rope_type": "default"},
        {"rope_theta": 500.0, "rope_type": "linear", "factor": 2.0},
        {
            "rope_theta": 500.0, "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
            "high_freq_factor": 4.0, "original_max_position_embeddings": 16,
        },
    ],
    "attention_dropout": [0.0, 0.25],
    "head_dim": [None, 4, 14],
    "is_causal": [True, False],
}  # fmt: skip
"""Fields that decide what is computed -> values with which the answers are the classes'."""

OWN: dict[str, dict[str, list[Any]]] = {
    "Mistral": {
        "sliding_window": [1, 2, 5, 18, 19, 100, 4096, None],
        "layer_types": [["full_attention"] * 3],
        "hidden_size": [26],  # heads of 6 then, in the class
    },
    "Llama": {
        "attention_bias": [True], "mlp_bias": [True], "num_key_value_heads": [None],
        "layer_types": [["full_attention"] * 3],
    },
}  # fmt: skip

NOT_SERVED: dict[str, list[Any]] = {
    "hidden_act": ["quick_gelu"],
    "rope_parameters": [
        {"rope_theta": 500.0, "rope_type": "dynamic", "factor": 2.0},
    ],
}  # fmt: skip

WITHOUT_EFFECT: dict[str, Any] = {
    "initializer_range": 0.5, "use_cache": False, "bos_token_id": 3, "eos_token_id": [3, 4],
    "pretraining_tp": 2,
}  # fmt: skip
"""Fields that change no hidden state of the classes."""

CASES = [
    (kind, key, value)
    for kind in KINDS
    for fields in (HONOURED, OWN[kind])
    for key, values in fields.items()
    for value in values
]


def original(kind: str, **changes: Any) -> Any:
    """Without a window, where none is asked for: 4,096 tokens are more than these texts have."""
    window = {"sliding_window": None} if kind == "Mistral" else {}
    return random_model(kind, **(window | changes))


@pytest.mark.parametrize("kind", KINDS)
def test_every_field_is_here(kind: str) -> None:
    theirs = {field.name for field in dataclasses.fields(getattr(transformers, f"{kind}Config"))}
    own = theirs - {field.name for field in dataclasses.fields(transformers.PreTrainedConfig)}
    assert own <= HONOURED.keys() | OWN[kind].keys() | WITHOUT_EFFECT.keys()
    assert len(own) > 15


@pytest.mark.parametrize(("kind", "key", "value"), CASES)
def test_a_field_is_honoured(kind: str, key: str, value: Any, tmp_path: Path) -> None:
    model = original(kind, **{key: value})
    check_same(model, saved(model, tmp_path))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("key", WITHOUT_EFFECT)
def test_a_field_without_effect(kind: str, key: str, tmp_path: Path) -> None:
    model = original(kind, **{key: WITHOUT_EFFECT[key]})
    check_same(model, saved(model, tmp_path))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("key", "value"), [(key, value) for key, values in NOT_SERVED.items() for value in values]
)
def test_a_value_is_refused(kind: str, key: str, value: Any, tmp_path: Path) -> None:
    folder = saved(original(kind, **{key: value}), tmp_path)
    with pytest.raises(CheckpointError, match=f"config.json: {key}"):
        load_checkpoint(folder)


@pytest.mark.parametrize("number", range(8))
@pytest.mark.parametrize("kind", KINDS)
def test_odd_sizes(kind: str, number: int, tmp_path: Path) -> None:
    """Sizes at random, most of them no multiple of anything; not so few channels that a norm of
    them makes much of float32's rounding."""
    some = random.Random(f"{seed(number)} {kind}")
    kept, head = some.randint(1, 3), 2 * some.randint(1, 37)
    heads = kept * some.randint(1, 4)
    sizes: dict[str, Any] = {
        "vocab_size": some.randint(9, 300), "num_hidden_layers": some.randint(1, 4),
        "num_attention_heads": heads, "num_key_value_heads": kept, "head_dim": head,
        "intermediate_size": some.randint(5, 90),
        "rope_parameters": {"rope_theta": some.choice([50.0, 1e4, 1e6]), "rope_type": "default"},
        "rms_norm_eps": some.choice([1e-6, 1e-3]),
    }  # fmt: skip
    if kind == "Mistral":
        sizes |= {"hidden_size": some.randint(17, 70), "sliding_window": some.randint(1, 20)}
    else:
        sizes["hidden_size"] = heads * some.randint(-(-17 // heads), 20)  # else the class refuses
        sizes |= {"attention_bias": some.random() < 0.5, "mlp_bias": some.random() < 0.5}
    model = original(kind, **sizes)
    check_same(model, saved(model, tmp_path))


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_file_leaves_open(kind: str, tmp_path: Path) -> None:
    """Is what the class takes: 10,000 for the base, causal, of Mistral a window of 4,096."""
    model = original(
        kind, rope_parameters={"rope_theta": 10_000.0, "rope_type": "default"},
        num_key_value_heads=8, num_attention_heads=8, hidden_size=32,
    )  # fmt: skip
    folder = saved(model, tmp_path)
    path = folder / "config.json"
    said = json.loads(path.read_text())
    for key in ("rope_parameters", "layer_types", "sliding_window", "attention_bias", "mlp_bias",
                "rms_norm_eps", "hidden_act", "head_dim", "num_key_value_heads",
                "max_position_embeddings", "attention_dropout", "pad_token_id"):  # fmt: skip
        said.pop(key, None)
    path.write_text(json.dumps(said))
    theirs = getattr(transformers, f"{kind}ForCausalLM")
    model = theirs.from_pretrained(folder).eval()
    check_same(model, folder)
    config = load_checkpoint(folder).encoder.config
    assert (config.window, config.max_length) == (
        (4095, 131_072) if kind == "Mistral" else (None, 2048)
    )
    assert config.max_length == model.config.max_position_embeddings
    path.write_text(json.dumps(said | {"rope_theta": 50, "rope_scaling": None}))
    check_same(theirs.from_pretrained(folder).eval(), folder)
