"""ELECTRA: discriminators and generators, small, base and large; ms-marco-electra-base's encoder.

Clark et al., arXiv 2003.10555. BERT's layers and names without a pooler, on tables that may have
another width than the states and are then mapped to it. BERT's tensors have the same names:
`config.json` tells the two apart.
"""

from __future__ import annotations

from dataclasses import replace

from ..config import EncoderConfig
from ..head_config import HeadConfig
from . import bert
from .config_file import ConfigFile
from .family import Family, HeadNames, Published
from .parts import Names, Parts, both

UNSAID = {
    "vocab_size": 30_522,
    "embedding_size": 128,
    "hidden_size": 256,
    "num_hidden_layers": 12,
    "num_attention_heads": 4,
    "intermediate_size": 1024,
    "max_position_embeddings": 512,
}
"""What transformers' class takes for the sizes that a `config.json` leaves out."""


def _config(config: ConfigFile, names: Names) -> EncoderConfig:
    config.require("add_cross_attention", (False, None), False, "pyenc runs encoders only")
    said = ConfigFile(config.path, {**UNSAID, **config.values})
    shape = bert.shape(said, names)
    width = said.size("embedding_size")
    return replace(
        shape,
        embedding_size=None if width == shape.hidden_size else width,
        pooler=False,
    )


def _parts(config: EncoderConfig, names: Names) -> Parts:
    parts = bert.FAMILY.parts(config, names)
    if config.embedding_size is not None:
        parts |= both("embeddings.project", "embeddings_project")
    return parts


def _head(config: ConfigFile, names: Names) -> HeadNames:
    """The generator's; its code has GELU there, whatever `hidden_act` says."""
    return HeadNames(
        HeadConfig(activation="gelu", norm_eps=config.number("layer_norm_eps", 1e-12)),
        dense="generator_predictions.dense",
        norm="generator_predictions.LayerNorm",
        decoder="generator_lm_head",
        biases=("generator_lm_head.bias",),
    )


FAMILY = Family(
    name="ELECTRA",
    checkpoints=(
        Published("electra-small-discriminator, -base-, -large-", "golden", "512 (position table)"),
        Published(
            "electra-small-generator, -base-, -large-",
            "golden",
            "512 (position table)",
            "with the masked-LM head",
        ),
        Published(
            "ms-marco-electra-base",
            "golden",
            "512 (position table)",
            "a reranker, whose classifier is run as it is through pyenc.accelerate",
        ),
    ),
    signature=bert.FAMILY.signature,
    accepts=lambda config: config.says(("electra",), ("Electra",)),
    config=_config,
    parts=_parts,
    head=_head,
    model_types=("electra",),
    prefixes=("", "electra."),
    set_aside=(
        "discriminator_predictions.",
        "generator_predictions.",
        "generator_lm_head.",
        "classifier.",
        "sequence_summary.",
        "qa_outputs.",
    ),
    tied={"generator_lm_head.weight": "embeddings.word.weight"},
)
