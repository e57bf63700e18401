"""JinaBert qk-post-norm: jina-embeddings-v2-base-code.

JinaBert v2 with LayerNorms on q and k over their full width, x added (and normalised) a second
time after attention, and a gated feed-forward whose second rows are the gate, or with
`feed_forward_type: "original"` one without a gate; neither has a bias on its way up.
"""

from __future__ import annotations

from ..config import EncoderConfig
from .config_file import ConfigFile, common_fields
from .family import POOLED, Family, Published
from .heads import predictions
from .jina import alibi_only, gate
from .parts import Names, Parts, attention_output, both, embedding_parts, separate_qkv


def _config(config: ConfigFile, names: Names) -> EncoderConfig:
    alibi_only(config)
    activation = gate(config)
    return EncoderConfig(
        **common_fields(config, names),
        position="alibi",
        max_length=config.size("max_position_embeddings", 512),
        # hidden_act is read by the original feed-forward alone.
        activation=activation or config.activation(),
        gated=activation is not None,
        gate_first=False,
        up_bias=False,
        qk_norm=True,
        second_residual=True,
    )


def _parts(config: EncoderConfig, names: Names) -> Parts:
    parts = embedding_parts(config)
    up = "up_gated_layer" if config.gated else "up_layer"
    for i in range(config.num_layers):
        ours, theirs = f"layers.{i}", f"encoder.layer.{i}"
        parts |= separate_qkv(ours, theirs) | attention_output(ours, theirs)
        for x in "qk":
            parts |= both(f"{ours}.attention.{x}_norm", f"{theirs}.attention.self.layer_norm_{x}")
        parts |= both(f"{ours}.second_norm", f"{theirs}.layer_norm_1")
        parts[f"{ours}.feed_forward.up.weight"] = (f"{theirs}.mlp.{up}.weight",)
        parts |= both(f"{ours}.feed_forward.down", f"{theirs}.mlp.down_layer")
        parts |= both(f"{ours}.feed_forward_norm", f"{theirs}.layer_norm_2")
    return parts


FAMILY = Family(
    name="JinaBert qk-post-norm",
    checkpoints=(
        Published(
            "jina-embeddings-v2-base-code",
            "golden",
            "8,192 by its files; ALiBi has no limit",
            "its original feed-forward held against the written-out formula only",
        ),
    ),
    signature=(
        "encoder.layer.0.mlp.down_layer.weight",
        "encoder.layer.0.attention.self.layer_norm_q.weight",
    ),
    config=_config,
    parts=_parts,
    head=predictions,
    classifier=POOLED,
)
