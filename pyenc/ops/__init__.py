"""The ops of an encoder, a folder each; every op runs on packed sequences and differentiates."""

from .activation import ACTIVATIONS
from .attention import attention
from .attention.bias import (
    ALiBi,
    AsymmetricALiBi,
    RelativePositionBias,
    alibi_slopes,
    relative_position_bucket,
)
from .attention.own_object import DistanceBias, ScoreBias, ScoreMap
from .attention.score_check import check_score_bias
from .attention.share import computed_share
from .attention.soft_cap import SoftCap
from .backend import BACKENDS, use_backend
from .disentangled import disentangled_attention
from .disentangled.rows import DistanceRows
from .embedding import embedding_norm
from .experts import experts
from .gated import gated_activation, gated_linear
from .linear import linear
from .norm import add_layer_norm, add_rms_norm
from .norm_rotary import rms_norm_rotary
from .rotary import rotary
from .segment_mean import masked_mean_pool, segment_mean

__all__ = [
    "ACTIVATIONS",
    "BACKENDS",
    "ALiBi",
    "AsymmetricALiBi",
    "DistanceBias",
    "DistanceRows",
    "RelativePositionBias",
    "ScoreBias",
    "ScoreMap",
    "SoftCap",
    "add_layer_norm",
    "add_rms_norm",
    "alibi_slopes",
    "attention",
    "check_score_bias",
    "computed_share",
    "disentangled_attention",
    "embedding_norm",
    "experts",
    "gated_activation",
    "gated_linear",
    "linear",
    "masked_mean_pool",
    "relative_position_bucket",
    "rms_norm_rotary",
    "rotary",
    "segment_mean",
    "use_backend",
]
