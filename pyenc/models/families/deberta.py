"""DeBERTa-v2 and v3: deberta-v3-xsmall to -large, mdeberta-v3-base, deberta-v2-xlarge, mxbai-rerank
and other classifiers.

He et al., arXiv 2006.03654 and arXiv 2111.09543. BERT's layers without a table of positions: scores
are of words with words, and of words with how far apart they are (`Disentangled`). The first
DeBERTa (`model_type` "deberta") has other projections and other names, and is not served.
"""

from __future__ import annotations

from typing import Any

from ...errors import CheckpointError, UnknownArchitectureError
from ..config import EncoderConfig
from ..convolution import Convolution
from ..disentangled import Disentangled
from ..head_config import HeadConfig
from .config_file import LARGEST, ConfigFile, common_fields
from .family import Family, HeadNames, Published
from .heads import predictions
from .parts import Names, Parts, attention_output, both, embedding_parts, plain_feed_forward

UNSAID: dict[str, Any] = {
    "vocab_size": 128_100,
    "hidden_size": 1536,
    "num_hidden_layers": 24,
    "num_attention_heads": 24,
    "intermediate_size": 6144,
    "max_position_embeddings": 512,
    "type_vocab_size": 0,
    "layer_norm_eps": 1e-7,
}
"""What transformers' class takes for what a `config.json` leaves out."""

TERMS = ("c2p", "p2c")
"""Of `pos_att_type`: words with distances' keys, and with their queries."""


def _signed(config: ConfigFile, key: str) -> int:
    """A whole number, of which one below 1 means that there is none: 0 then."""
    value = config.values.get(key, -1)
    if isinstance(value, bool) or not isinstance(value, int) or value >= LARGEST:
        raise CheckpointError(
            f"{config.path}: {key} must be a whole number below {LARGEST} (none where it is below "
            f"1), got {value!r}"
        )
    return max(value, 0)


def _words(config: ConfigFile, key: str, default: str) -> list[str]:
    """Words of a setting, in one string with "|" between them; or a list of them."""
    value = config.values.get(key, default)
    if isinstance(value, str):
        return [word.strip() for word in value.lower().split("|")]
    if not isinstance(value, list) or not all(isinstance(word, str) for word in value):
        raise CheckpointError(
            f'{config.path}: {key} must be words, as "a|b" or ["a", "b"], got {value!r:.80}'
        )
    return value


def _known(config: ConfigFile, key: str, default: str, known: tuple[str, ...]) -> list[str]:
    words = _words(config, key, default)
    if strange := [word for word in words if word not in known]:
        raise UnknownArchitectureError(
            f"{config.path}: {key} has {strange[0]!r}, which is not served; served: "
            f"{', '.join(known)}"
        )
    return words


def _disentangled(config: ConfigFile) -> Disentangled:
    terms = _known(config, "pos_att_type", "", (*TERMS, ""))
    said = _signed(config, "max_relative_positions")
    key = "max_relative_positions" if said else "max_position_embeddings"
    distance, buckets = config.integer(key), _signed(config, "position_buckets")
    if buckets and (buckets < 2 or distance < buckets // 2 + 2):
        raise CheckpointError(
            f"{config.path}: position_buckets is {buckets} and {key} {distance}; expected no "
            f"buckets (-1), or at least 2, and {key} of at least {max(buckets, 2) // 2 + 2}"
        )
    if not any(terms):
        raise UnknownArchitectureError(
            f"{config.path}: pos_att_type names no term, so that no score knows a distance; "
            f"expected one of {', '.join(TERMS)}, or both"
        )
    norms = _known(config, "norm_rel_ebd", "none", ("none", "layer_norm"))
    return Disentangled(
        span=buckets or distance,
        buckets=buckets,
        max_distance=distance if buckets else 0,
        content_to_position="c2p" in terms,
        position_to_content="p2c" in terms,
        shared=config.flag("share_att_key", False),
        norm="layer_norm" in norms,
    )


def _convolution(config: ConfigFile) -> Convolution | None:
    if not (kernel := _signed(config, "conv_kernel_size")):
        return None
    name = config.text("conv_act", "tanh")
    activation = name if name == "tanh" else config.activation("conv_act")
    return Convolution(kernel, config.integer("conv_groups", 1), activation)


def _config(config: ConfigFile, names: Names) -> EncoderConfig:
    said = ConfigFile(config.path, {**UNSAID, **config.values})
    said.require(
        "relative_attention", (True,), False, "pyenc runs DeBERTa's attention by distances only"
    )
    said.require(
        "position_biased_input", (False,), True,
        "a table of positions beside distances is not served",
    )  # fmt: skip
    fields = common_fields(said, names) | {"pooler": False}
    hidden, heads = fields["hidden_size"], fields["num_heads"]
    said.require(
        "embedding_size", (hidden,), hidden, "word embeddings of another width are not served"
    )
    said.require(
        "attention_head_size", (hidden // heads,), hidden // heads,
        "heads that are not hidden_size / num_attention_heads wide are not served",
    )  # fmt: skip
    return EncoderConfig(
        **fields,
        position="disentangled",
        disentangled=_disentangled(said),
        convolution=_convolution(said),
        max_length=said.size("max_position_embeddings"),
        activation=said.activation(),
        attention_dropout=said.number("attention_probs_dropout_prob", 0.1),
    )


def _parts(config: EncoderConfig, names: Names) -> Parts:
    kind = config.disentangled
    assert kind is not None
    parts = embedding_parts(config)
    parts["distances.table.weight"] = ("encoder.rel_embeddings.weight",)
    if kind.norm:
        parts |= both("distances.norm", "encoder.LayerNorm")
    if config.convolution is not None:
        parts |= both("neighbours.conv", "encoder.conv.conv")
        parts |= both("neighbours.norm", "encoder.conv.LayerNorm")
    for i in range(config.num_layers):
        ours, theirs = f"layers.{i}", f"encoder.layer.{i}"
        own = f"{theirs}.attention.self"
        parts |= both(
            f"{ours}.attention.qkv", *(f"{own}.{x}_proj" for x in ("query", "key", "value"))
        )
        if not kind.shared and kind.position_to_content:
            parts |= both(f"{ours}.attention.distances.query", f"{own}.pos_query_proj")
        if not kind.shared and kind.content_to_position:
            parts |= both(f"{ours}.attention.distances.key", f"{own}.pos_key_proj")
        parts |= attention_output(ours, theirs) | plain_feed_forward(ours, theirs)
    return parts


def _head(config: ConfigFile, names: Names) -> HeadNames:
    """Where `config.json` has no "legacy": false, BERT's, which the published v3 ones lack."""
    said = ConfigFile(config.path, {**UNSAID, **config.values})
    if said.flag("legacy", True):
        return predictions(said, names)
    return HeadNames(
        HeadConfig(activation=said.activation(), norm_eps=said.number("layer_norm_eps", 1e-7)),
        dense="lm_predictions.lm_head.dense",
        norm="lm_predictions.lm_head.LayerNorm",
        decoder="lm_predictions.lm_head.decoder",
        biases=("lm_predictions.lm_head.bias",),
    )


FAMILY = Family(
    name="DeBERTa",
    checkpoints=(
        Published(
            "deberta-v3-xsmall, -small, -base, -large, mdeberta-v3-base",
            "golden",
            "512 by their files; distances have no end",
            "tokenizers as tokenizer.json or as spm.model alone",
        ),
        Published(
            "deberta-v2-xlarge, -xxlarge",
            "golden",
            "512 by their files; distances have no end",
            "with the convolution behind their first layer",
        ),
        Published(
            "mxbai-rerank-xsmall-v1, -base-, -large-; nli-deberta-v3-* and other classifiers",
            "golden",
            "512 by their files; distances have no end",
            "whose classifiers are run as they are through pyenc.accelerate",
        ),
    ),
    signature=(
        "encoder.layer.0.attention.self.query_proj.weight",
        "encoder.layer.0.intermediate.dense.weight",
    ),
    config=_config,
    parts=_parts,
    head=_head,
    model_types=("deberta-v2",),
    prefixes=("", "deberta."),
    set_aside=(
        "pooler.",
        "cls.",
        "lm_predictions.",
        "mask_predictions.",
        "classifier.",
        "qa_outputs.",
        # Left over in published files, read by nobody where position_biased_input is false.
        "embeddings.position_embeddings.",
        "embeddings.word_embeddings._weight",
    ),
)
