"""JinaBert v2: jina-embeddings-v2-small-en, -base-en, -base-de, -base-es, -base-zh.

Günther et al., arXiv 2310.19923. Symmetric ALiBi in every layer, GEGLU (or ReGLU) whose first
rows are the gate; `feed_forward_type: "original"` has BERT's feed-forward, and then its names.
"""

from __future__ import annotations

from ...errors import CheckpointError
from ..config import EncoderConfig
from .config_file import ConfigFile, common_fields
from .family import POOLED, Family, Published
from .heads import predictions
from .parts import (
    Names,
    Parts,
    attention_output,
    embedding_parts,
    gated_feed_forward,
    plain_feed_forward,
    separate_qkv,
)


def alibi_only(config: ConfigFile) -> None:
    """The published code adds ALiBi whatever this says, and more when it says "absolute"."""
    why = "JinaBert is supported with ALiBi alone"
    config.require("position_embedding_type", ("alibi",), "absolute", why)


def gate(config: ConfigFile) -> str | None:
    """Activation of the gate by `feed_forward_type`; None where the feed-forward has no gate."""
    kind = config.text("feed_forward_type", "original")
    activations = {"geglu": "gelu", "reglu": "relu", "original": None}
    if kind not in activations:
        raise CheckpointError(
            f"{config.path}: feed_forward_type {kind!r} is unknown; known: {', '.join(activations)}"
        )
    return activations[kind]


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
        up_bias=activation is None,
    )


def _parts(config: EncoderConfig, names: Names) -> Parts:
    parts = embedding_parts(config)
    for i in range(config.num_layers):
        ours, theirs = f"layers.{i}", f"encoder.layer.{i}"
        parts |= separate_qkv(ours, theirs) | attention_output(ours, theirs)
        feed_forward = gated_feed_forward if config.gated else plain_feed_forward
        parts |= feed_forward(ours, theirs)
    return parts


FAMILY = Family(
    name="JinaBert v2",
    checkpoints=(
        Published(
            "jina-embeddings-v2-small-en, -base-en, -base-de, -base-es, -base-zh",
            "golden",
            "8,192 by their files; ALiBi has no limit",
            "GEGLU, ReGLU",
        ),
        Published(
            "jina-reranker-v1-turbo-en, -tiny-en",
            "unverified",
            "8,192 by their files; ALiBi has no limit",
            "rerankers: CrossEncoder after pyenc.register(); layers as above, the classifier held "
            "against the written-out formula, their files not seen",
        ),
    ),
    signature=(
        "encoder.layer.0.mlp.gated_layers.weight",
        "encoder.layer.0.attention.self.query.weight",
    ),
    config=_config,
    parts=_parts,
    head=predictions,
    classifier=POOLED,
)

FAMILY_ORIGINAL = Family(
    name="JinaBert v2, original feed-forward",
    checkpoints=(
        Published(
            "JinaBert v2 of feed_forward_type original",
            "golden",
            "ALiBi has no limit",
            "no published checkpoint known",
        ),
    ),
    signature=(
        "encoder.layer.0.intermediate.dense.weight",
        "encoder.layer.0.attention.self.query.weight",
    ),
    accepts=lambda config: config.values.get("position_embedding_type") == "alibi",
    config=_config,
    parts=_parts,
    head=predictions,
    classifier=POOLED,
)
