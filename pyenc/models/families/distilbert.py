"""DistilBERT: msmarco-distilbert, multi-qa-distilbert, distiluse, splade's encoder.

Sanh et al., arXiv 1910.01108. BERT without token types and pooler, under other names.
"""

from __future__ import annotations

from ..config import EncoderConfig
from ..head_config import HeadConfig
from .config_file import ConfigFile
from .family import Family, HeadNames, Published
from .parts import Names, Parts, both


def _config(config: ConfigFile, names: Names) -> EncoderConfig:
    positions = config.size("max_position_embeddings", 512)
    # transformers takes BERT's names of the sizes as well.
    return EncoderConfig(
        vocab_size=config.size("vocab_size", 30522),
        hidden_size=config.size(config.spelled("dim", "hidden_size"), 768),
        num_layers=config.size(config.spelled("n_layers", "num_hidden_layers"), 6),
        num_heads=config.size(config.spelled("n_heads", "num_attention_heads"), 12),
        intermediate_size=config.size("hidden_dim", 3072),
        position="absolute",
        num_positions=positions,
        max_length=positions,
        activation=config.activation("activation"),
        hidden_dropout=config.number("dropout", 0.1),
        attention_dropout=config.number("attention_dropout", 0.1),
        output_dropout=0.0,
    )


def _parts(config: EncoderConfig, names: Names) -> Parts:
    parts: Parts = {
        "embeddings.word.weight": ("embeddings.word_embeddings.weight",),
        "embeddings.position.weight": ("embeddings.position_embeddings.weight",),
    }
    parts |= both("embeddings.norm", "embeddings.LayerNorm")
    for i in range(config.num_layers):
        ours, theirs = f"layers.{i}", f"transformer.layer.{i}"
        parts |= both(f"{ours}.attention.qkv", *(f"{theirs}.attention.{x}_lin" for x in "qkv"))
        parts |= both(f"{ours}.attention.out", f"{theirs}.attention.out_lin")
        parts |= both(f"{ours}.attention_norm", f"{theirs}.sa_layer_norm")
        parts |= both(f"{ours}.feed_forward.up", f"{theirs}.ffn.lin1")
        parts |= both(f"{ours}.feed_forward.down", f"{theirs}.ffn.lin2")
        parts |= both(f"{ours}.feed_forward_norm", f"{theirs}.output_layer_norm")
    return parts


def _head(config: ConfigFile, names: Names) -> HeadNames:
    return HeadNames(
        HeadConfig(activation=config.activation("activation"), norm_eps=1e-12),
        dense="vocab_transform",
        norm="vocab_layer_norm",
        decoder="vocab_projector",
        biases=("vocab_projector.bias",),
    )


FAMILY = Family(
    name="DistilBERT",
    checkpoints=(
        Published(
            "msmarco-distilbert-*, multi-qa-distilbert-cos-v1", "golden", "512 (position table)"
        ),
    ),
    signature=("transformer.layer.0.attention.q_lin.weight",),
    config=_config,
    parts=_parts,
    head=_head,
    model_types=("distilbert",),
    prefixes=("", "distilbert.", "model."),
    set_aside=("vocab_", "classifier.", "pre_classifier.", "qa_outputs."),
    tied={"vocab_projector.weight": "embeddings.word.weight"},
    layer=r"transformer\.layer\.(\d+)\.",
    layers_key="n_layers",
)
