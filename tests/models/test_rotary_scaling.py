"""Scalings of rotary positions: the published formulas pair by pair in float64, transformers' own
functions to the bit, and its classes' states of long texts."""

from __future__ import annotations

import dataclasses
import math
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pyenc.errors import CheckpointError, InputError, InputTypeError
from pyenc.loading import load_checkpoint, save_checkpoint
from pyenc.loading.save import own_checkpoint
from pyenc.models import Encoder, EncoderConfig, Rotary, RotaryScaling
from pyenc.models.families import ConfigFile
from pyenc.models.families.rope import rotary

LLAMA_3 = RotaryScaling("llama3", 8.0, 8192)
SCALINGS = {
    "linear": RotaryScaling("linear", 3.0),
    "llama3": LLAMA_3,
    "llama3, narrow": RotaryScaling("llama3", 32.0, 64, low_freq_factor=2.0, high_freq_factor=3.0),
    "yarn": RotaryScaling("yarn", 4.0, 512),
    "yarn, between channels": RotaryScaling("yarn", 16.0, 40_960, 1.0, 4.0, 16.0, 2.0, False, 1.25),
}


def turns(theta: float, pair: int, dim: int, tokens: float) -> float:
    """How often a pair of channels turns round within so many tokens."""
    return tokens * theta ** (-2 * pair / dim) / (2 * math.pi)


def written_out(said: RotaryScaling, theta: float, pair: int, dim: int) -> float:
    """One pair's radians a position, by the papers."""
    plain: float = theta ** (-2 * pair / dim)
    if said.kind == "linear":
        return plain / said.factor
    if said.kind == "llama3":
        made = turns(theta, pair, dim, said.trained_length)
        span = said.high_freq_factor - said.low_freq_factor
        kept = min(max((made - said.low_freq_factor) / span, 0.0), 1.0)
        return kept * plain + (1 - kept) * plain / said.factor

    def channel(rounds: float) -> float:
        of_turn = said.trained_length / (2 * math.pi * rounds)
        return dim * math.log(of_turn) / (2 * math.log(theta))

    low, high = channel(said.beta_fast), channel(said.beta_slow)
    if said.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    kept = 1 - min(max((pair - low) / (high - low), 0.0), 1.0)
    return kept * plain + (1 - kept) * plain / said.factor


@pytest.mark.parametrize("theta", [10_000.0, 500_000.0])
@pytest.mark.parametrize("name", SCALINGS)
def test_frequencies(name: str, theta: float) -> None:
    said, dim = SCALINGS[name], 64
    right = [written_out(said, theta, pair, dim) for pair in range(dim // 2)]
    got = Rotary(theta, scaling=said).frequencies(dim)
    assert got.dtype == torch.float32
    torch.testing.assert_close(
        got.double(), torch.tensor(right, dtype=torch.float64), rtol=2e-6, atol=0
    )
    plain = Rotary(theta).frequencies(dim)
    changed = int((got != plain).sum())
    assert changed == dim // 2 if said.kind == "linear" else 0 < changed < dim // 2


def test_what_queries_and_keys_are_multiplied_by() -> None:
    at, cu = torch.arange(7), torch.tensor([0, 7])
    for scaling, right in (
        (SCALINGS["yarn"], 0.1 * math.log(4) + 1),
        (SCALINGS["yarn, between channels"], 1.25),
        (RotaryScaling("yarn", 0.5, 512), 1.0),
        (LLAMA_3, 1.0),
    ):
        cos, sin = Rotary(10_000.0, scaling=scaling).tables(at, cu, 16)
        torch.testing.assert_close((cos**2 + sin**2).sqrt(), torch.full((7, 8), right))


def drawn(seed: int) -> dict[str, Any]:
    """A `rope_parameters` with whatever may stand in it."""
    pick = random.Random(seed)
    kind = pick.choice(["linear", "llama3", "yarn"])
    said: dict[str, Any] = {
        "rope_type": kind,
        "rope_theta": pick.choice([10_000.0, 500_000.0, 37.5]),
        "factor": pick.choice([1.0, 2.0, 8.0, 1.5, 32.0]),
    }
    if kind != "linear" and pick.random() < 0.7:
        said["original_max_position_embeddings"] = pick.choice([64, 512, 8192])
    if kind == "llama3":
        said["low_freq_factor"] = pick.choice([1.0, 2.0, 0.5])
        said["high_freq_factor"] = pick.choice([4.0, 8.0, 3.0])
    if kind == "yarn":
        may = {
            "attention_factor": [1.0, 0.7, 1.3, None], "beta_fast": [32, 16.0, 0, None],
            "beta_slow": [1, 2.0, None], "mscale": [1.0, 0.707, 0], "mscale_all_dim": [1.0, 0.5],
            "truncate": [True, False], "factor": [None],
        }  # fmt: skip
        said |= {key: pick.choice(values) for key, values in may.items() if pick.random() < 0.4}
    return said


@pytest.mark.parametrize("seed", range(60))
def test_as_transformers_to_the_bit(seed: int) -> None:
    dim, longest = (16, 64, 128)[seed % 3], (8192, 131_072)[seed % 2]
    as_transformers(drawn(seed), longest, dim)


MODELS: dict[str, dict[str, Any]] = {
    "Llama": {},
    "Mistral": {"sliding_window": None},
    "Qwen2": {},
    "Qwen3": {"head_dim": 16},
}
SAID: dict[str, dict[str, Any]] = {
    "linear": {"rope_type": "linear", "factor": 3.0},
    "llama3": {
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    },
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32},
}  # fmt: skip


def as_transformers(said: dict[str, Any], longest: int = 8192, dim: int = 16) -> None:
    transformers = pytest.importorskip("transformers", minversion="5")
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    config = transformers.LlamaConfig(
        hidden_size=2 * dim, num_attention_heads=2, max_position_embeddings=longest,
        rope_parameters=dict(said),
    )  # fmt: skip
    right, magnitude = ROPE_INIT_FUNCTIONS[said["rope_type"]](config, "cpu")
    values = {"rope_parameters": said, "max_position_embeddings": longest}
    got = rotary(ConfigFile("config.json", values), None)
    assert got.scaling is not None
    assert torch.equal(got.frequencies(dim), right)
    assert got.scaling.magnitude == pytest.approx(magnitude, rel=1e-15)


@pytest.mark.parametrize(
    ("theta", "trained", "betas"),
    [
        (10.0, 512, (32.0, 1.0)),  # the ramp ends behind the last channel,
        (10.0, 8192, (2.0, 1.0)),  # begins behind it,
        (500_000.0, 6, (32.0, 1.0)),  # is at the first alone,
        (10_000.0, 1, (32.0, 1.5)),  # or ends before it
    ],
)
def test_ramps_at_the_ends(theta: float, trained: int, betas: tuple[float, float]) -> None:
    said = {
        "rope_type": "yarn", "rope_theta": theta, "factor": 4.0, "beta_fast": betas[0],
        "beta_slow": betas[1], "original_max_position_embeddings": trained,
    }  # fmt: skip
    as_transformers(said)


@pytest.mark.parametrize("shares", [(1.0, 0.5), (0.707, 1.0), (1.0, 0), (0, 0.5), (1.0, 1.0)])
@pytest.mark.parametrize("factor", [None, 1.0, 16.0])
def test_shares_of_what_heads_are_multiplied_by(
    factor: float | None, shares: tuple[float, float]
) -> None:
    said = {
        "rope_type": "yarn", "rope_theta": 10_000.0, "factor": factor, "mscale": shares[0],
        "mscale_all_dim": shares[1], "original_max_position_embeddings": 512,
    }  # fmt: skip
    as_transformers(said)


@pytest.mark.parametrize("kind", ["llama3", "yarn"])
@pytest.mark.parametrize("inner", [None, 512])
def test_the_trained_length_beside_a_scaling(kind: str, inner: int | None) -> None:
    key = "original_max_position_embeddings"
    said = {**SAID[kind], "rope_theta": 10_000.0, key: inner}
    values = {"max_position_embeddings": 8192, "rope_parameters": said, key: 512}
    got = rotary(ConfigFile("config.json", values), None).scaling
    assert got is not None
    assert got.trained_length == 512
    if inner is not None:
        with pytest.raises(CheckpointError, match=r"is 64, and 512 in .*, two spellings of one"):
            rotary(ConfigFile("config.json", values | {key: 64}), None)


def model_of(kind: str, **changes: Any) -> Any:
    transformers = pytest.importorskip("transformers", minversion="5")
    config = getattr(transformers, f"{kind}Config")(
        vocab_size=61, hidden_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, intermediate_size=40, max_position_embeddings=256, pad_token_id=0,
        **MODELS[kind], **changes,
    )  # fmt: skip
    model = getattr(transformers, f"{kind}Model")(config).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.25)
    return model


def long_batch() -> tuple[Tensor, Tensor]:
    ids, mask = torch.randint(1, 61, (3, 190)), torch.ones(3, 190, dtype=torch.long)
    mask[1, 150:] = 0
    mask[2, :77] = 0
    return ids, mask


@torch.no_grad()
@pytest.mark.parametrize("scaling", SAID)
@pytest.mark.parametrize("kind", MODELS)
def test_states_of_long_texts(kind: str, scaling: str, tmp_path: Path) -> None:
    model = model_of(kind, rope_parameters={"rope_theta": 10_000.0, **SAID[scaling]})
    model.save_pretrained(tmp_path)
    encoder = load_checkpoint(tmp_path, skip_eps=0).encoder
    ids, mask = long_batch()
    kept = mask == 1
    right = model(input_ids=ids, attention_mask=mask).last_hidden_state[kept]
    off = (encoder(ids, mask)[kept] - right).abs().max()
    assert off <= 1e-5
    # Without it, or with queries and keys as large as without it, they are others.
    turned = encoder.config.rotary
    assert turned is not None
    assert turned.scaling is not None
    others: list[RotaryScaling | None] = [None]
    if scaling == "yarn":
        others.append(dataclasses.replace(turned.scaling, attention_factor=1.0))
    for other in others:
        changed = dataclasses.replace(turned, scaling=other)
        mutant = Encoder(dataclasses.replace(encoder.config, rotary=changed))
        mutant.load_state_dict(encoder.state_dict())
        assert (mutant.eval()(ids, mask)[kept] - right).abs().max() > 1e-3


def test_saved_in_the_own_format(tmp_path: Path) -> None:
    config = EncoderConfig(
        vocab_size=11, hidden_size=16, num_layers=1, num_heads=2, intermediate_size=8,
        max_length=64, position="rotary",
        rotary=Rotary(10_000.0, scaling=SCALINGS["yarn, between channels"]),
    )  # fmt: skip
    save_checkpoint(own_checkpoint(Encoder(config)), tmp_path)
    assert load_checkpoint(tmp_path).encoder.config == config


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"kind": "dynamic"}, 'kind must be "linear" or "llama3" or "yarn"'),
        ({"factor": 0.0}, "factor must be positive and finite, got 0.0"),
        ({"factor": math.inf}, "factor must be positive and finite"),
        ({"factor": "2"}, "factor must be a number"),
        ({"trained_length": 64}, "trained_length 64 is not of kind 'linear'"),
        ({"kind": "llama3"}, "kind 'llama3' needs a positive trained_length, got 0"),
        ({"kind": "llama3", "trained_length": 9, "beta_fast": 3.0}, "beta_fast 3.0 is not of kind"),
        (
            {"kind": "llama3", "trained_length": 9, "high_freq_factor": 1.0},
            "high_freq_factor must be finite and above low_freq_factor, got 1.0 and 1.0",
        ),
        (
            {"kind": "llama3", "trained_length": 9, "high_freq_factor": math.inf},
            "high_freq_factor must be finite and above low_freq_factor, got inf and 1.0",
        ),
        ({"kind": "yarn", "trained_length": 9, "beta_slow": 0.0}, "beta_slow must be positive"),
        ({"kind": "yarn", "trained_length": 9, "attention_factor": -1.0}, "attention_factor must"),
    ],
    ids=str,
)
def test_refused(said: dict[str, Any], message: str) -> None:
    with pytest.raises((InputError, InputTypeError), match=f"RotaryScaling: {message}"):
        RotaryScaling(**({"kind": "linear", "factor": 2.0} | said))


def test_one_scaling_at_a_time() -> None:
    with pytest.raises(InputError, match="scaling goes without factor and dynamic_factor"):
        Rotary(10_000.0, factor=2.0, scaling=LLAMA_3)
    with pytest.raises(InputError, match="scaling goes without factor and dynamic_factor"):
        Rotary(10_000.0, dynamic_factor=2.0, trained_length=64, scaling=LLAMA_3)
    with pytest.raises(InputError, match=r'"yarn" needs a theta above 1, got 1\.0'):
        Rotary(1.0, scaling=SCALINGS["yarn"])
