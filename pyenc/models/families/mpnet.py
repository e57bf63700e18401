"""MPNet: all-mpnet-base-v2, multi-qa-mpnet-base, paraphrase-mpnet-base.

Song et al., arXiv 2004.09297. BERT's layers with T5's relative position buckets, one table for all
layers, beside absolute positions counted from the padding id. Both are fixed in the original code:
32 buckets up to distance 128, and padding id 1 whatever `config.json` says.
"""

from __future__ import annotations

from dataclasses import replace

from ..config import EncoderConfig
from . import bert
from .config_file import ConfigFile
from .family import Family, Published
from .heads import roberta_head
from .parts import Names, Parts, both, embedding_parts, plain_feed_forward
from .roberta import counted

PADDING = 1
BUCKETS = 32


def _config(config: ConfigFile, names: Names) -> EncoderConfig:
    why = "MPNet computes 32 buckets whatever the size of the table"
    config.require("relative_attention_num_buckets", (BUCKETS,), BUCKETS, why)
    shape = replace(bert.shape(config, names), type_vocab_size=0, relative_buckets=BUCKETS)
    return counted(shape, config, PADDING)


def _parts(config: EncoderConfig, names: Names) -> Parts:
    parts = embedding_parts(config)
    parts["relative_bias.weight"] = ("encoder.relative_attention_bias.weight",)
    for i in range(config.num_layers):
        ours, theirs = f"layers.{i}", f"encoder.layer.{i}"
        parts |= both(f"{ours}.attention.qkv", *(f"{theirs}.attention.attn.{x}" for x in "qkv"))
        parts |= both(f"{ours}.attention.out", f"{theirs}.attention.attn.o")
        parts |= both(f"{ours}.attention_norm", f"{theirs}.attention.LayerNorm")
        parts |= plain_feed_forward(ours, theirs)
    return parts


FAMILY = Family(
    name="MPNet",
    checkpoints=(
        Published(
            "all-mpnet-base-v2",
            "real weights",
            "384 by its files, 512 by its table",
            "sentence-transformers' vectors to 1e-7",
        ),
        Published(
            "multi-qa-mpnet-base-*, paraphrase-mpnet-base-v2", "golden", "512 (position table)"
        ),
    ),
    signature=(
        "encoder.layer.0.attention.attn.q.weight",
        "encoder.relative_attention_bias.weight",
    ),
    config=_config,
    parts=_parts,
    head=roberta_head,
    model_types=("mpnet",),
    prefixes=("", "mpnet.", "model."),
    tied={"lm_head.decoder.weight": "embeddings.word.weight"},
)
