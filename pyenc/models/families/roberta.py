"""RoBERTa, XLM-RoBERTa, CamemBERT: bge-m3, multilingual-e5, all-distilroberta-v1.

Liu et al., arXiv 1907.11692; Conneau et al., arXiv 1911.02116. BERT's names and arithmetic, but
positions are counted from the padding id: only `model_type` tells them apart.
"""

from __future__ import annotations

from dataclasses import replace

from ...errors import CheckpointError
from ..config import EncoderConfig
from . import bert
from .config_file import ConfigFile
from .family import Family, Published
from .heads import roberta_head
from .parts import Names

MODEL_TYPES = ("xlm-roberta", "roberta", "camembert")
CLASSES = ("XLMRobertaFor", "XLMRobertaModel", "RobertaFor", "RobertaModel", "Camembert")


def padding_id(config: ConfigFile, default: int) -> int:
    """The id that positions are counted from; -1 is no token's, and they are counted from zero."""
    if type(said := config.values.get("pad_token_id")) is int and said == -1:
        return said
    if config.values.get("pad_token_id", default) is None:
        raise CheckpointError(
            f"{config.path}: pad_token_id is null, but positions are counted from it; expected the "
            f"id of the padding token, {default} in the published checkpoints"
        )
    return config.integer("pad_token_id", default)


def counted(shape: EncoderConfig, config: ConfigFile, padding: int) -> EncoderConfig:
    """An absolute table whose rows up to the padding id belong to no token."""
    length = shape.num_positions - padding - 1
    if length < 1:
        raise CheckpointError(
            f"{config.path}: max_position_embeddings {shape.num_positions} leaves no position "
            f"after the padding id {padding}"
        )
    return replace(shape, padding_id=padding, max_length=length)


def shape(config: ConfigFile, names: Names) -> EncoderConfig:
    """The encoder of a RoBERTa, for those that are one but for a field or two."""
    plain, padding = bert.shape(config, names), padding_id(config, 1)
    return plain if padding < 0 else counted(plain, config, padding)


FAMILY = Family(
    name="RoBERTa",
    checkpoints=(
        Published(
            "bge-m3 (dense), multilingual-e5-base, -large",
            "golden",
            "8,192 and 512 (position table)",
        ),
        Published("all-distilroberta-v1, all-roberta-large-v1", "golden", "512 (position table)"),
        Published(
            "paraphrase-multilingual-mpnet-base-v2, CamemBERT",
            "golden",
            "512 (position table)",
            "XLM-RoBERTa's arithmetic",
        ),
    ),
    signature=bert.FAMILY.signature,
    accepts=lambda config: config.says(MODEL_TYPES, CLASSES),
    config=shape,
    parts=bert.FAMILY.parts,
    head=roberta_head,
    model_types=MODEL_TYPES,
    prefixes=("", "roberta.", "model.", "model.roberta."),
    tied={"lm_head.decoder.weight": "embeddings.word.weight"},
)
