"""MosaicBERT: mosaic-bert-base and -seqlen-*, lodestone-base-4096-v1; by its names, DNABERT-2.

Portes et al., arXiv 2312.17482. Symmetric ALiBi, GEGLU whose first rows are the gate, q, k and v
in one matrix. Its `config.json` says "absolute" positions although there are none.
"""

from __future__ import annotations

from dataclasses import replace

from ..config import EncoderConfig
from .config_file import ConfigFile, common_fields
from .family import POOLED, Family, HeadNames, Published
from .heads import predictions
from .parts import Names, Parts, attention_output, both, embedding_parts, gated_feed_forward


def _config(config: ConfigFile, names: Names) -> EncoderConfig:
    # MosaicBERT's own class defaults to 512; lodestone trained longer than it starts.
    trained = config.integer("alibi_starting_size", 512)
    return EncoderConfig(
        **common_fields(config, names),
        position="alibi",
        max_length=max(trained, config.integer("seq_length", 0)),
        activation="gelu",
        gated=True,
        up_bias=False,
        attention_dropout=config.number("attention_probs_dropout_prob", 0.0),
    )


def _parts(config: EncoderConfig, names: Names) -> Parts:
    parts = embedding_parts(config)
    for i in range(config.num_layers):
        ours, theirs = f"layers.{i}", f"encoder.layer.{i}"
        parts |= both(f"{ours}.attention.qkv", f"{theirs}.attention.self.Wqkv")
        parts |= attention_output(ours, theirs) | gated_feed_forward(ours, theirs)
    return parts


def _head(config: ConfigFile, names: Names) -> HeadNames:
    head = predictions(config, names)
    # The original code writes this number there, whatever config.json says.
    return replace(head, config=replace(head.config, norm_eps=1e-12))


FAMILY = Family(
    name="MosaicBERT",
    checkpoints=(
        Published(
            "mosaic-bert-base, mosaic-bert-base-seqlen-*, lodestone-base-4096-v1",
            "golden",
            "what they were trained on, 128 to 4,096; ALiBi has no limit",
            "with and without the masked-LM head",
        ),
        Published(
            "DNABERT-2",
            "unverified",
            "512 by its files; ALiBi has no limit",
            "believed to have the same code",
        ),
    ),
    signature=("encoder.layer.0.attention.self.Wqkv.weight",),
    config=_config,
    parts=_parts,
    head=_head,
    classifier=POOLED,
)
