"""BERT: all-MiniLM, GIST, bge, mxbai, e5, LaBSE as far as they are plain BERT.

Devlin et al., arXiv 1810.04805. RoBERTa's tensors have the same names (`roberta.py`), JinaBert's
with the original feed-forward too (`jina.py`): `config.json` tells them apart.
"""

from __future__ import annotations

from ...errors import UnknownArchitectureError
from ..config import EncoderConfig
from .config_file import ConfigFile, common_fields
from .family import Family, Published
from .heads import predictions
from .parts import Names, Parts, attention_output, embedding_parts, plain_feed_forward, separate_qkv


def shape(config: ConfigFile, names: Names) -> EncoderConfig:
    """The encoder of a plain BERT, for those that are one but for a field or two."""
    absolute = "plain BERT has absolute positions"
    config.require("position_embedding_type", ("absolute", None), "absolute", absolute)
    positions = config.size("max_position_embeddings")
    return EncoderConfig(
        **common_fields(config, names),
        position="absolute",
        num_positions=positions,
        max_length=positions,
        activation=config.activation(),
        attention_dropout=config.number("attention_probs_dropout_prob", 0.1),
    )


def _config(config: ConfigFile, names: Names) -> EncoderConfig:
    # RoBERTa's padding id, and nothing else that would tell the two apart.
    said = config.values.get("model_type") or config.values.get("architectures")
    if not said and config.values.get("pad_token_id") == 1:
        raise UnknownArchitectureError(
            f"{config.path}: model_type and architectures are missing, and pad_token_id 1 is "
            "RoBERTa's, whose tensors have BERT's names and other positions; expected model_type "
            '"bert", "roberta", "xlm-roberta" or "camembert"'
        )
    return shape(config, names)


def _parts(config: EncoderConfig, names: Names) -> Parts:
    parts = embedding_parts(config)
    for i in range(config.num_layers):
        ours, theirs = f"layers.{i}", f"encoder.layer.{i}"
        parts |= separate_qkv(ours, theirs) | attention_output(ours, theirs)
        parts |= plain_feed_forward(ours, theirs)
    return parts


FAMILY = Family(
    name="BERT",
    checkpoints=(
        Published(
            "all-MiniLM-L6-v2",
            "real weights",
            "256 by its files, 512 by its table",
            "sentence-transformers' vectors to 2e-7",
        ),
        Published(
            "bge-*-en, GIST, mxbai-embed, e5, multilingual-e5-small, LaBSE, "
            "paraphrase-multilingual-MiniLM",
            "golden",
            "512 (position table)",
            "as far as they are plain BERT; mean and CLS pooling",
        ),
    ),
    signature=(
        "encoder.layer.0.intermediate.dense.weight",
        "encoder.layer.0.attention.self.query.weight",
    ),
    # JinaBert with the original feed-forward has these names too, and says "alibi".
    accepts=lambda config: config.values.get("position_embedding_type") != "alibi",
    config=_config,
    parts=_parts,
    head=predictions,
)
