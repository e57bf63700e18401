"""`Encoder`: bad input and impossible configurations are named."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from torch import Tensor

from pyenc.errors import InputError, InputTypeError
from pyenc.models import (
    Convolution,
    Disentangled,
    Encoder,
    Experts,
    HeadConfig,
    Rotary,
    packing,
)
from pyenc.models import encoder as encoder_module
from tests.models.shapes import ABSOLUTE, ALIBI

TURNED = {"position": "rotary", "rotary": Rotary(9.0)}
TABLE = {"position": "absolute", "num_positions": 9}


def test_bad_input_is_named(encoder: Encoder) -> None:
    ids = torch.zeros(2, 5, dtype=torch.long)
    high, low = ids.clone(), ids.clone()
    high[1, 3], low[0, 2] = 50, -1
    for given, message in (
        ((high,), "token id 50 at packed token 8 is out of range.* 0 to 49"),
        ((low,), "token id -1 at packed token 2"),
        ((ids, None, ids + 2), "token type 2 .* 0 to 1"),
        ((ids, torch.ones(2, 4)), r"attention_mask must be a tensor shaped as input_ids, \(2, 5\)"),
        ((ids, torch.full((2, 5), -10000.0)), "zeros and ones only"),
        ((ids.float(),), "must be integers"),
        ((ids.short(),), "must be integers, int32 or int64, got torch.int16"),
        ((ids.numpy(),), "input_ids must be a tensor, got ndarray"),
        ((ids, None, ids.float()), "token_type_ids must be integers"),
        ((ids[0],), r"must be \(B, N\)"),
    ):
        with pytest.raises(InputError, match=message):
            encoder(*given)


def test_tensors_without_values_and_masks_of_another_kind(encoder: Encoder) -> None:
    """A complex mask lost its imaginary part; others were torch's own errors."""
    ids, ones = torch.zeros(2, 5, dtype=torch.long), torch.ones(2, 5)
    far, bounds = ids.to("meta"), torch.tensor([0, 5, 10])
    for given, message in (
        ((ids, ones.to(torch.complex64)), "attention_mask must be of bool, .* got torch.complex64"),
        ((ids, ones.to(torch.float8_e4m3fn)), "attention_mask must be of bool, .* got .*float8_e4"),
        ((ids, ones.to_sparse()), "attention_mask must be dense"),
        ((ids.to_sparse(),), "input_ids must be dense"),
        ((ids, ones.to("meta")), "attention_mask is on meta, the other tensors on cpu"),
        ((ids, None, far), "token_type_ids is on meta, the other tensors on cpu"),
        ((far,), "Encoder: input_ids are on meta, where they have no values"),
        ((far, ones.to("meta")), "Encoder: input_ids are on meta, where they have no values"),
    ):
        with pytest.raises(InputError, match=message):
            encoder(*given)
    for take in (encoder.forward_packed, encoder.check):
        with pytest.raises(InputError, match="forward_packed: input_ids are on meta, where"):
            take(far.flatten(), bounds)
        with pytest.raises(InputError, match="cu_seqlens is on meta, the other tensors on cpu"):
            take(ids.flatten(), bounds.to("meta"))
    for dtype in (torch.bool, torch.uint8, torch.int16, torch.float16, torch.float64):
        assert torch.equal(encoder(ids, ones.to(dtype)), encoder(ids, ones))


@pytest.mark.parametrize(
    ("ids", "bounds", "message"),
    [
        (torch.zeros(4).long(), [0, 5], "ends at 5, but there are 4 packed tokens"),
        (torch.zeros(4).long(), [0, 3, 2, 4], "decreases from 3 to 2"),
        (torch.zeros(4).long(), [-1, 4], "must start at 0"),
        (torch.zeros(4), [0, 4], "input_ids must be integers, int32 or int64"),
        (torch.zeros(2, 2).long(), [0, 4], r"input_ids must be \(T,\)"),
    ],
)
def test_bad_packed_input_is_named(
    encoder: Encoder, ids: Tensor, bounds: list[int], message: str
) -> None:
    for take in (encoder.forward_packed, encoder.check):
        with pytest.raises(InputError, match=message):
            take(ids, torch.tensor(bounds))


@torch.no_grad()
def test_checked_is_looked_at_once(encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    ids, bounds = torch.randint(0, 50, (9,)), torch.tensor([0, 4, 9])
    with pytest.raises(InputError, match="token id 50 at packed token 1"):
        encoder.check(torch.tensor([3, 50]), torch.tensor([0, 2]))
    if encoder.config.position == "absolute":
        with pytest.raises(InputError, match=r"position 4[02] at packed token 40"):
            encoder.check(torch.zeros(41).long(), torch.tensor([0, 41]))
    with pytest.raises(InputError, match="token type 9 at packed token 2"):
        encoder.check(ids, bounds, token_type_ids=torch.tensor([0, 1, 9] * 3))
    if encoder.config.position == "absolute":
        with pytest.raises(InputError, match="position 4000 at packed token 2"):
            encoder.check(ids[:3], torch.tensor([0, 3]), position_ids=torch.tensor([0, 1, 4000]))
    expected = encoder.forward_packed(ids, bounds)
    encoder.check(ids, bounds)

    def looked(*args: object, **kwargs: object) -> None:
        raise AssertionError("values were looked at")

    monkeypatch.setattr(encoder_module, "check_ranges", looked)
    monkeypatch.setattr(packing, "sequence_bounds", looked)
    assert torch.equal(encoder.forward_packed(ids, bounds, checked=True), expected)


def test_beyond_the_position_table() -> None:
    encoder = Encoder(ABSOLUTE)
    with pytest.raises(InputError, match=r"position 40 .* 0 to 39"):
        encoder(torch.zeros(1, 41, dtype=torch.long))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_size": 25}, "hidden_size 25 is not a multiple of num_heads 3"),
        ({"num_layers": 0}, "num_layers must be positive"),
        ({"activation": "elu"}, "unknown activation 'elu'"),
        ({"position": "rope"}, "unknown position"),
        ({"position": "absolute"}, "need num_positions"),
        ({"hidden_dropout": 1.0}, r"hidden_dropout must be in \[0, 1\)"),
        ({"position": "rotary"}, 'position "rotary" needs the field rotary'),
        ({"rotary": Rotary(1.0)}, 'position "rotary" needs the field rotary'),
        ({"position": "rotary", "rotary": Rotary(9.0), "head_size": 5}, "rotary needs even heads"),
        (
            {"position": "rotary", "head_size": 2, "rotary": Rotary(9.0, 1.0, 2.0, 8)},
            "dynamic rotary scaling needs heads of 4",
        ),
        ({"position": "relative"}, "relative positions need relative_buckets"),
        ({"relative_buckets": 8}, "relative_buckets 8 must be .* not beside alibi"),
        ({"position": "relative", "relative_buckets": 6}, "must be a multiple of 4"),
        ({"local": (True, False)}, "local layers need a window"),
        ({"local": (True,), "window": 4}, "local names 1 of 2 layers"),
        ({"padding_id": -1}, "padding_id must not be negative"),
        ({"position": "disentangled"}, 'position "disentangled" needs the field disentangled'),
        ({"disentangled": Disentangled(8)}, 'position "disentangled" needs the field disentangled'),
        *[
            (
                {"position": "disentangled", "disentangled": Disentangled(8), **beside},
                f'{next(iter(beside))} .* is not served beside position "disentangled"',
            )
            for beside in (
                {"causal": True},
                {"local": (True, False), "window": 3},
                {"qk_norm": True},
                {"head_norm": True},
                {"num_kv_heads": 1},
                {"log_length": 9},
            )
        ],
        (
            {"convolution": Convolution(3, 5)},
            "hidden_size 24 is not a multiple of the convolution's groups 5",
        ),
        ({"convolution": Convolution(3), "norm_first": True}, "a convolution goes without norm_"),
        ({"log_length": 1}, "log_length must be at least 2"),
        *[
            (TURNED | {"score_cap": cap}, r"score_cap must be in \[1e-30")
            for cap in (0.0, -50.0, 1e-46, 1e38, math.inf, math.nan)
        ],
        ({"score_cap": 9.0}, "score_cap 9.0 is served beside .* not beside 'alibi'"),
        (TABLE | {"score_cap": 9.0, "relative_buckets": 8}, "'absolute' and relative_buckets"),
        *[({"norm_eps": e}, "norm_eps must be finite") for e in (-1e-12, math.nan, math.inf)],
    ],
)
def test_impossible_configs(change: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        dataclasses.replace(ALIBI, **change)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_size": "16"}, "hidden_size must be a whole number, got '16'"),
        ({"hidden_size": 16.0}, "hidden_size must be a whole number, got 16.0"),
        ({"num_layers": True}, "num_layers must be a whole number, got True"),
        ({"num_heads": None}, "num_heads must be a whole number, got None"),
        ({"padding_id": 1.0}, "padding_id must be a whole number, got 1.0"),
        ({"causal": "no"}, "causal must be True or False, got 'no'"),
        ({"gated": 1}, "gated must be True or False, got 1"),
        ({"norm_eps": "1e-5"}, "norm_eps must be a number, got '1e-5'"),
        ({"scale": True}, "scale must be a number, got True"),
        ({"position": ["alibi"]}, r"position must be a string, got \['alibi'\]"),
        ({"layer_order": 3}, "layer_order must be a tuple of whole numbers, got 3"),
        ({"layer_order": (0, 1.0)}, r"layer_order must be a tuple of whole numbers, got \(0, 1.0"),
        ({"local": True}, "local must be a tuple of True or False, got True"),
        ({"local": ("no", "no")}, "local must be a tuple of True or False, got"),
        ({"rotary": 10_000.0}, "rotary must be a pyenc.models.Rotary, got 10000.0"),
        ({"local_rotary": {"theta": 1.0}}, "local_rotary must be a pyenc.models.Rotary, got"),
        ({"experts": 8}, "experts must be a pyenc.models.Experts, got 8"),
        ({"lm_head": True}, "lm_head must be a pyenc.models.HeadConfig, got True"),
        ({"convolution": 3}, "convolution must be a pyenc.models.Convolution, got 3"),
        ({"disentangled": {}}, "disentangled must be a pyenc.models.Disentangled, got"),
        ({"no_lm_head": None}, "no_lm_head must be a string, got None"),
    ],
)
def test_types_of_a_config(change: dict[str, object], message: str) -> None:
    with pytest.raises(InputTypeError, match=f"EncoderConfig: {message}"):
        dataclasses.replace(ALIBI, **change)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"norm": "rmsnorm"}, 'norm must be "layer" or "rms", got \'rmsnorm\''),
        ({"norm": None}, 'norm must be "layer" or "rms", got None'),
        ({"feed_forward_dropout": "hidden"}, '.* must be "inner" or "outer" or "both", got'),
        ({"window": 8}, "window 8 is of the layers that local names"),
        (
            {"position": "rotary", "rotary": Rotary(9.0), "local_rotary": Rotary(7.0)},
            "local_rotary is of those layers that local names.*; local names none",
        ),
        (
            {"local_rotary": Rotary(7.0), "local": (True, False), "window": 3},
            "local_rotary is of .*, beside the rotary of the others; rotary, .*, is None",
        ),
        ({"first_norm": False}, "first_norm False goes with norm_first alone"),
        ({"wide_residual": True}, "wide_residual True goes with norm_first alone"),
    ],
)
def test_what_would_be_taken_for_something_else(change: dict[str, object], message: str) -> None:
    """An unknown norm was layer norm, a window of no layers none, and so was a rotary of theirs."""
    with pytest.raises(InputError, match=f"EncoderConfig: {message}"):
        dataclasses.replace(ALIBI, **change)  # type: ignore[arg-type]


def test_lists_of_a_config_are_tuples() -> None:
    """So that what was saved and loaded again is equal to it."""
    tuples = {"local": (True, False), "layer_order": (1, 0)}
    lists = {name: list(value) for name, value in tuples.items()}
    config = dataclasses.replace(ALIBI, window=3, **lists)  # type: ignore[arg-type]
    assert config == dataclasses.replace(ALIBI, window=3, **tuples)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("kind", "given", "message"),
    [
        (Rotary, {"theta": "10000"}, "theta must be a number, got '10000'"),
        (Rotary, {"theta": 1e4, "trained_length": 2.0}, "trained_length must be a whole number"),
        (Convolution, {"kernel": 3.0}, "kernel must be a whole number, got 3.0"),
        (Disentangled, {"span": 8, "shared": "no"}, "shared must be True or False, got 'no'"),
        (Experts, {"count": 2, "each": 1, "layers": 3}, "layers must be a tuple of True or False"),
        (HeadConfig, {"tied": 1}, "tied must be True or False, got 1"),
    ],
)
def test_types_of_its_parts(kind: type, given: dict[str, object], message: str) -> None:
    with pytest.raises(InputTypeError, match=f"{kind.__name__}: {message}"):
        kind(**given)
