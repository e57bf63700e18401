"""ALBERT: paraphrase-albert-small-v2, albert-base-v2, -large-v2, -xlarge-v2, -xxlarge-v2.

Lan et al., arXiv 1909.11942. BERT's layers, of which a text goes through few again and again, and
tables narrower than the states, which a linear layer widens.
"""

from __future__ import annotations

import re

from ...errors import CheckpointError
from ..config import MOST_STEPS, EncoderConfig
from ..head_config import HeadConfig
from .config_file import ConfigFile
from .family import Family, HeadNames, Published
from .parts import Names, Parts, both, embedding_parts, there

GROUPS = "encoder.albert_layer_groups"
_LAYER = r"encoder\.albert_layer_groups\.(\d+\.albert_layers\.\d+)\."


def _order(depth: int, groups: int, inner: int) -> tuple[int, ...]:
    """Which layer comes when: all of a group, one after the other, at each of `depth` steps."""
    # As the original divides, whose quotients round down otherwise than whole numbers' do.
    steps = (int(i / (depth / groups)) for i in range(depth))
    return tuple(group * inner + i for group in steps for i in range(inner))


def _config(config: ConfigFile, names: Names) -> EncoderConfig:
    config.require(
        "position_embedding_type", ("absolute", None), None, "ALBERT has absolute positions"
    )
    depth, groups = config.integer("num_hidden_layers", 12), config.integer("num_hidden_groups", 1)
    inner = config.integer("inner_group_num", 1)
    if not (1 <= groups <= depth and inner and depth * inner <= MOST_STEPS):
        raise CheckpointError(
            f"{config.path}: num_hidden_layers {depth}, num_hidden_groups {groups}, "
            f"inner_group_num {inner}: expected at least one of each, no more groups than layers, "
            f"and at most {MOST_STEPS} steps in all"
        )
    positions = config.size("max_position_embeddings", 512)
    dropout = config.number("hidden_dropout_prob", 0.0)
    return EncoderConfig(
        vocab_size=config.size("vocab_size", 30_000),
        hidden_size=config.size("hidden_size", 4096),
        embedding_size=config.size("embedding_size", 128),
        num_layers=groups * inner,
        layer_order=_order(depth, groups, inner),
        num_heads=config.size("num_attention_heads", 64),
        intermediate_size=config.size("intermediate_size", 16_384),
        type_vocab_size=config.integer("type_vocab_size", 2),
        position="absolute",
        num_positions=positions,
        max_length=positions,
        activation=config.activation("hidden_act", "gelu_new"),
        norm_eps=config.number("layer_norm_eps", 1e-12),
        pooler=there(names, "pooler"),
        # What the feed-forward adds is not dropped.
        embedding_dropout=dropout,
        output_dropout=dropout,
        attention_dropout=config.number("attention_probs_dropout_prob", 0.0),
    )


def _inner(names: Names) -> int:
    """How many layers a group has, by the names of the first one's."""
    first = (re.match(rf"{GROUPS}\.0\.albert_layers\.(\d+)\.", name) for name in names)
    return len({match[1] for match in first if match}) or 1


def _parts(config: EncoderConfig, names: Names) -> Parts:
    parts = {
        ours: tuple(name.replace("pooler.dense.", "pooler.") for name in theirs)
        for ours, theirs in embedding_parts(config).items()
    }
    parts |= both("embeddings.project", "encoder.embedding_hidden_mapping_in")
    inner = _inner(names)
    for i in range(config.num_layers):
        ours, theirs = f"layers.{i}", f"{GROUPS}.{i // inner}.albert_layers.{i % inner}"
        attention = f"{theirs}.attention"
        parts |= both(
            f"{ours}.attention.qkv", *(f"{attention}.{x}" for x in ("query", "key", "value"))
        )
        parts |= both(f"{ours}.attention.out", f"{attention}.dense")
        parts |= both(f"{ours}.attention_norm", f"{attention}.LayerNorm")
        parts |= both(f"{ours}.feed_forward.up", f"{theirs}.ffn")
        parts |= both(f"{ours}.feed_forward.down", f"{theirs}.ffn_output")
        parts |= both(f"{ours}.feed_forward_norm", f"{theirs}.full_layer_layer_norm")
    return parts


def _head(config: ConfigFile, names: Names) -> HeadNames:
    return HeadNames(
        HeadConfig(
            activation=config.activation("hidden_act", "gelu_new"),
            norm_eps=config.number("layer_norm_eps", 1e-12),
        ),
        dense="predictions.dense",
        norm="predictions.LayerNorm",
        decoder="predictions.decoder",
        biases=("predictions.bias", "predictions.decoder.bias"),
    )


FAMILY = Family(
    name="ALBERT",
    checkpoints=(
        Published(
            "paraphrase-albert-small-v2, albert-base-v2, -large-v2, -xlarge-v2, -xxlarge-v2",
            "golden",
            "512 (position table)",
        ),
    ),
    signature=(
        f"{GROUPS}.0.albert_layers.0.ffn.weight",
        "encoder.embedding_hidden_mapping_in.weight",
    ),
    config=_config,
    parts=_parts,
    head=_head,
    model_types=("albert",),
    prefixes=("", "albert."),
    set_aside=("predictions.", "sop_classifier.", "classifier.", "qa_outputs."),
    tied={"predictions.decoder.weight": "embeddings.word.weight"},
    layer=_LAYER,
    layers_key="num_hidden_groups times inner_group_num",
)
