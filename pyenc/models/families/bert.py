"""BERT: all-MiniLM, GIST, bge, mxbai, e5, LaBSE as far as they are plain BERT.

Devlin et al., arXiv 1810.04805. XLM-R and RoBERTa share the tensor names and not the positions
(theirs start after the padding id): `config.json` tells them apart, and they are refused.
"""

from __future__ import annotations

from ..config import EncoderConfig
from .family import (
    ConfigFile,
    Family,
    Parts,
    attention_output,
    common_fields,
    embedding_parts,
    plain_feed_forward,
    separate_qkv,
)


def _config(config: ConfigFile, names: frozenset[str]) -> EncoderConfig:
    absolute = "plain BERT has absolute positions"
    config.require("position_embedding_type", ("absolute", None), "absolute", absolute)
    config.require("is_decoder", (False, None), False, "pyenc runs encoders only")
    positions = config.integer("max_position_embeddings")
    return EncoderConfig(
        **common_fields(config, names),
        position="absolute",
        num_positions=positions,
        max_length=positions,
        activation=config.activation(),
        attention_dropout=config.number("attention_probs_dropout_prob", 0.1),
    )


def _parts(config: EncoderConfig) -> Parts:
    parts = embedding_parts(config)
    for i in range(config.num_layers):
        ours, theirs = f"layers.{i}", f"encoder.layer.{i}"
        parts |= separate_qkv(ours, theirs) | attention_output(ours, theirs)
        parts |= plain_feed_forward(ours, theirs)
    return parts


FAMILY = Family(
    name="BERT",
    checkpoints="BERT (all-MiniLM, GIST, bge, mxbai, e5)",
    signature=(
        "encoder.layer.0.intermediate.dense.weight",
        "encoder.layer.0.attention.self.query.weight",
    ),
    # JinaBert with the original feed-forward has these names too, and says "alibi".
    accepts=lambda config: config.values.get("position_embedding_type") != "alibi",
    config=_config,
    parts=_parts,
)
