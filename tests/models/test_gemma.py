"""Gemma 3, 2 and 1 against transformers' own classes: to both sides and to one, windows, bases and
their scaling, in either spelling of `config.json`; soft caps."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pyenc.loading import load_checkpoint

transformers = pytest.importorskip("transformers", minversion="5")
WORDS = 61
SIZES: dict[str, Any] = {
    "vocab_size": WORDS, "hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "intermediate_size": 40, "sliding_window": 7,
    "max_position_embeddings": 64, "query_pre_attn_scalar": 24, "pad_token_id": 0,
}  # fmt: skip
LINEAR = {"rope_type": "linear", "factor": 4.0}


ONE_SIDE = {key: SIZES[key] for key in SIZES.keys() - {"sliding_window", "query_pre_attn_scalar"}}


def original(kind: str = "Gemma3Text", **changes: Any) -> Any:
    """A random model of transformers, far from where it begins."""
    sizes = ONE_SIDE if kind == "Gemma" else SIZES
    config = getattr(transformers, f"{kind}Config")(**(sizes | changes))
    model = getattr(transformers, f"{kind}Model")(config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model.eval()


def saved(model: Any, folder: Path) -> Path:
    model.save_pretrained(folder)
    return folder


def batch() -> tuple[Tensor, Tensor]:
    """Wider than windows, by turns padded on the right and on the left."""
    ids, mask = torch.randint(1, WORDS, (4, 29)), torch.zeros(4, 29, dtype=torch.long)
    for row, length in enumerate((29, 1, 13, 24)):
        start = (29 - length) * (row % 2)
        mask[row, start : start + length] = 1
    return ids, mask


@torch.no_grad()
def check_same(model: Any, folder: Path) -> None:
    encoder = load_checkpoint(folder, skip_eps=0).encoder
    ids, mask = batch()
    kept = mask == 1
    right = model(input_ids=ids, attention_mask=mask).last_hidden_state[kept]
    assert right.std() > 0.1
    off = (encoder(ids, mask)[kept] - right).abs().max()
    assert off <= 2e-5 * max(1.0, float(right.abs().max())), off


@pytest.mark.parametrize("both_sides", [True, False])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        *({"sliding_window": width} for width in (1, 2, 5, 28, 29, 99)),
        {"layer_types": ["full_attention"] * 3},
        {"layer_types": ["full_attention", "sliding_attention", "full_attention"]},
        {
            "rope_parameters": {
                "full_attention": {"rope_theta": 5000.0, **LINEAR},
                "sliding_attention": {"rope_theta": 70.0, "rope_type": "default"},
            },
            "layer_types": ["full_attention", "sliding_attention", "full_attention"],
        },
        {
            "rope_parameters": {
                "full_attention": {"rope_theta": 5000.0, "rope_type": "default"},
                "sliding_attention": {"rope_theta": 70.0, **LINEAR},
            },
        },
        {"attention_bias": True},
    ],
    ids=str,
)
def test_a_field_is_honoured(changes: dict[str, Any], both_sides: bool, tmp_path: Path) -> None:
    model = original(use_bidirectional_attention=both_sides, **changes)
    check_same(model, saved(model, tmp_path))


@pytest.mark.parametrize("seed", range(6))
def test_drawn(seed: int, tmp_path: Path) -> None:
    some = random.Random(seed)
    heads = some.choice([2, 4, 6])
    model = original(
        use_bidirectional_attention=some.random() < 0.5,
        hidden_size=heads * some.randint(4, 9),
        num_attention_heads=heads,
        num_key_value_heads=some.choice([1, 2]),
        head_dim=2 * some.randint(2, 9),
        sliding_window=some.randint(2, 30),
        num_hidden_layers=some.randint(1, 7),
        query_pre_attn_scalar=some.randint(4, 90),
        rms_norm_eps=some.choice([1e-6, 1e-3]),
    )
    check_same(model, saved(model, tmp_path))


@pytest.mark.parametrize("scaling", [None, LINEAR], ids=str)
def test_as_transformers_4_spells_it(scaling: dict[str, Any] | None, tmp_path: Path) -> None:
    """Bases by two keys, a scaling that is of the layers without a window alone."""
    folder = saved(original(num_hidden_layers=6), tmp_path)
    path = folder / "config.json"
    said = json.loads(path.read_text())
    for key in ("rope_parameters", "layer_types"):
        said.pop(key)
    said |= {
        "rope_theta": 5000.0, "rope_local_base_freq": 70.0, "rope_scaling": scaling,
        "sliding_window_pattern": 2,
    }  # fmt: skip
    path.write_text(json.dumps(said))
    model = transformers.Gemma3TextModel.from_pretrained(folder, dtype=torch.float32).eval()
    check_same(model, folder)
    turned = load_checkpoint(folder).encoder.config.rotary
    assert turned is not None
    assert (turned.scaling is None) == (scaling is None)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        *({"attn_logit_softcapping": cap} for cap in (None, 0.7, 4.0, 1e5)),
        *({"sliding_window": width} for width in (1, 2, 28, 29, 99)),
        {"layer_types": ["full_attention"] * 3},
        {"layer_types": ["full_attention", "sliding_attention", "sliding_attention"]},
        {"num_hidden_layers": 4, "attention_bias": True, "hidden_activation": "silu"},
        {"attention_dropout": None},
        {"query_pre_attn_scalar": 3, "num_key_value_heads": 1, "head_dim": 12},
        {"rope_parameters": {"rope_theta": 70.0, **LINEAR}},
    ],
    ids=str,
)
def test_of_gemma_2(changes: dict[str, Any], tmp_path: Path) -> None:
    model = original("Gemma2", **({"attn_logit_softcapping": 2.0} | changes))
    check_same(model, saved(model, tmp_path))


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"num_key_value_heads": 4},
        {"hidden_act": "gelu"},  # which its class takes for the approximation
        {"hidden_act": "relu", "attention_bias": True},
        {"rope_parameters": {"rope_theta": 70.0, "rope_type": "default"}},
    ],
    ids=str,
)
def test_of_gemma_1(changes: dict[str, Any], tmp_path: Path) -> None:
    model = original("Gemma", **changes)
    check_same(model, saved(model, tmp_path))


def test_layers_that_old_files_do_not_list(tmp_path: Path) -> None:
    """Of Gemma 2 the first of two has the window, and its cap is 50 where no file says it."""
    folder = saved(original("Gemma2", num_hidden_layers=5), tmp_path)
    path = folder / "config.json"
    said = json.loads(path.read_text())
    for key in ("layer_types", "rope_parameters", "attn_logit_softcapping"):
        said.pop(key)
    path.write_text(json.dumps(said | {"rope_theta": 70.0}))
    model = transformers.Gemma2Model.from_pretrained(folder, dtype=torch.float32).eval()
    check_same(model, folder)
    shape = load_checkpoint(folder).encoder.config
    assert (shape.score_cap, shape.local) == (50.0, (True, False, True, False, True))
