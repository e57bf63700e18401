"""`attn_implementation="pyenc"` in transformers' language models, against their eager attention."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from pyenc.errors import InputError

# By a module of it: a folder of tests has its name.
pytest.importorskip("transformers.modeling_utils")

import transformers as hf

from tests.integrations.transformers.register_support import registered as registered
from tests.integrations.transformers.test_attention_models import (
    SIZES,
    WORDS,
    inputs,
    padding,
    same_as_eager,
)

pytestmark = pytest.mark.usefixtures("registered")

MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", {}),
    "qwen2, windows": (
        "Qwen2Config", {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1},
    ),
    "qwen2, both sides": ("Qwen2Config", {"is_causal": False}),
    "qwen3": ("Qwen3Config", {"head_dim": 8}),
    "mistral, windows": ("MistralConfig", {"sliding_window": 6}),
    "gemma 2": (
        "Gemma2Config", {"head_dim": 8, "sliding_window": 5, "attn_logit_softcapping": 1.5},
    ),
    "gemma 3": ("Gemma3TextConfig", {"head_dim": 8, "sliding_window": 5}),
    "gemma 3, both sides": (
        "Gemma3TextConfig",
        {"head_dim": 8, "sliding_window": 5, "use_bidirectional_attention": True},
    ),
    "gpt2": ("GPT2Config", {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 80}),
}  # fmt: skip
OF_ONE_SIDE = [name for name in MODELS if "both sides" not in name]


def pair(name: str) -> tuple[Any, Any]:
    """One model twice, eager and pyenc's."""
    kind, changes = MODELS[name]
    config = getattr(hf, kind)(**SIZES | {"num_key_value_heads": 2} | changes)
    eager = hf.AutoModel.from_config(config, attn_implementation="eager").eval()
    ours = copy.deepcopy(eager)
    ours.set_attn_implementation("pyenc")
    return eager, ours


@pytest.mark.parametrize("kind", ["none", "right", "left", "holes"])
@pytest.mark.parametrize("name", MODELS)
def test_equal_to_eager(name: str, kind: str) -> None:
    same_as_eager(*pair(name), inputs(padding(kind)))


@pytest.mark.parametrize("name", OF_ONE_SIDE)
def test_packed_in_one_row(name: str) -> None:
    """By positions that begin again, or cumulative lengths beside: each text by itself."""
    eager, ours = pair(name)
    lengths = [7, 1, 12, 20, 1, 1]
    texts = [torch.randint(3, WORDS, (1, n)) for n in lengths]
    positions = torch.cat([torch.arange(n) for n in lengths])[None]
    bounds = torch.tensor([0, *lengths], dtype=torch.int32).cumsum(0, dtype=torch.int32)
    right = torch.cat([eager(input_ids=text).last_hidden_state for text in texts], 1)
    given: dict[str, Any] = {"input_ids": torch.cat(texts, 1), "position_ids": positions}
    given["use_cache"] = False
    beside = {"cu_seq_lens_q": bounds, "cu_seq_lens_k": bounds, "max_length_q": 20}
    for more in ({}, beside):
        out = ours(**given, **more).last_hidden_state
        assert (out - right).abs().max() <= 1e-5


@pytest.mark.parametrize("name", ["qwen3", "gemma 2"])
def test_what_is_generated(name: str) -> None:
    """The prompt goes through it, with a cache too; the words after it attend to that cache."""
    eager, ours = pair(name)
    given = inputs(padding("left"))
    kept = given["attention_mask"] == 1
    a, b = (model(**given, use_cache=True).last_hidden_state for model in (eager, ours))
    assert (a - b)[kept].abs().max() <= 1e-5
    cache = ours(**given, use_cache=True).past_key_values
    mask = torch.nn.functional.pad(given["attention_mask"], (0, 1), value=1)
    with pytest.raises(InputError, match="1 queries and 38 keys: a cache"):
        ours(given["input_ids"][:, :1], attention_mask=mask, past_key_values=cache)


def test_memory_is_linear() -> None:
    """Under a soft cap, for which eager attention is what transformers has, and a window."""
    from tests.integrations.transformers.test_attention_calls import Largest

    length, largest = 1024, []
    kind, changes = MODELS["gemma 2"]
    sizes = SIZES | {"max_position_embeddings": length, "sliding_window": 100}
    config = getattr(hf, kind)(**changes | sizes)
    for name in ("eager", "pyenc"):
        model = hf.AutoModel.from_config(config, attn_implementation=name).eval()
        with Largest() as seen:
            model(torch.full((1, length), 7)).last_hidden_state.sum().backward()
        largest.append(seen.count)
    assert largest[0] >= 4 * length**2
    assert largest[1] < length**2 / 2


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("name", MODELS)
def test_one_token(name: str, rows: int) -> None:
    """Which sees itself, whatever the window."""
    eager, ours = pair(name)
    ids = torch.randint(3, WORDS, (rows, 1))
    right, got = (model(ids).last_hidden_state for model in (eager, ours))
    assert (right - got).abs().max() <= 1e-5


def test_a_row_that_is_packed_beside_one_that_is_not() -> None:
    """Each row is asked."""
    _, ours = pair("mistral, windows")
    positions = torch.stack([torch.arange(12), torch.arange(12) % 5])
    ids = torch.randint(3, WORDS, (2, 12))
    for order in ([0, 1], [1, 0]):
        with pytest.raises(InputError, match="this model's mask is and_masks"):
            ours(ids, position_ids=positions[order], use_cache=False)
