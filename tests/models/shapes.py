"""Small configurations of every shape that encoders have, and texts for them."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from pyenc.models import Convolution, Disentangled, EncoderConfig, Experts
from pyenc.models.rotary import Rotary

ALIBI = EncoderConfig(
    vocab_size=50, hidden_size=24, num_layers=2, num_heads=3, intermediate_size=20,
    position="alibi", max_length=64, type_vocab_size=2, gated=True, up_bias=False,
)  # fmt: skip
ABSOLUTE = dataclasses.replace(
    ALIBI, position="absolute", num_positions=40, gated=False, up_bias=True, activation="silu"
)
COUNTED = dataclasses.replace(
    ABSOLUTE, num_positions=42, padding_id=1, relative_buckets=8, relative_max_distance=20
)
TURNED = dataclasses.replace(
    ALIBI,
    position="rotary",
    rotary=Rotary(1000.0, dynamic_factor=2.0, trained_length=12),
    log_length=9,
)
PRE_NORM = dataclasses.replace(
    ALIBI,
    position="relative",
    relative_buckets=8,
    relative_max_distance=20,
    head_size=10,
    scale=1.0,
    norm="rms",
    norm_first=True,
    embedding_norm=False,
    wide_residual=True,
)
WINDOWS = dataclasses.replace(
    ALIBI,
    position="rotary",
    rotary=Rotary(1000.0),
    local_rotary=Rotary(50.0),
    window=2,
    local=(True, False),
    norm_first=True,
    first_norm=False,
    norm_bias=False,
)
MIXTURE = dataclasses.replace(
    ABSOLUTE, position="rotary", num_positions=0, rotary=Rotary(1000.0),
    experts=Experts(count=5, each=2, layers=(False, True)),
)  # fmt: skip
DISTANCES = dataclasses.replace(
    ALIBI, position="disentangled", disentangled=Disentangled(8, 8, 20, norm=True),
    convolution=Convolution(3, 3),
)  # fmt: skip
OWN_DISTANCES = dataclasses.replace(
    ABSOLUTE, position="disentangled", num_positions=0, norm_first=True, head_size=10,
    disentangled=Disentangled(5, content_to_position=False, shared=False),
)  # fmt: skip
CAPPED = dataclasses.replace(
    ALIBI, position="rotary", rotary=Rotary(1000.0), score_cap=1.5, causal=True, window=3,
    local=(True, False), norm_first=True, norm="rms", num_kv_heads=1,
)  # fmt: skip
SHAPES = {
    "alibi": ALIBI,
    "absolute": ABSOLUTE,
    "counted": COUNTED,
    "turned": TURNED,
    "pre_norm": PRE_NORM,
    "windows": WINDOWS,
    "mixture": MIXTURE,
    "distances": DISTANCES,
    "own_distances": OWN_DISTANCES,
    "capped": CAPPED,
}


def rows(lengths: list[int]) -> list[Tensor]:
    return [torch.randint(0, 50, (n,)) for n in lengths]
