"""GTE v1.5: gte-base/-large-en-v1.5, gte-multilingual-base, snowflake-arctic-embed-m-v2.0, stella.

Zhang et al., mGTE, arXiv 2407.19669; Alibaba's own layout (`model_type: new`), and the one of
transformers (`gte`), which writes the same names. Rotary positions, a feed-forward whose second
rows are the gate.
"""

from __future__ import annotations

from ...errors import CheckpointError
from ..config import EncoderConfig
from ..head_config import HeadConfig
from ..rotary import Rotary
from .config_file import ConfigFile, common_fields, own_head_size
from .family import POOLED, Family, HeadNames, Published
from .in_memory import SIGNATURE, LayerNames, called
from .parts import Names, Parts, both, embedding_parts, there, weights


def _rotary(config: ConfigFile) -> Rotary:
    """theta and NTK scaling, as Alibaba's files spell them or as transformers 5 does."""
    parameters = config.section("rope_parameters")
    scaling = config.section("rope_scaling")
    if parameters.values and scaling.values:
        raise CheckpointError(
            f"{config.path}: rope_parameters and rope_scaling, two spellings of one setting"
        )
    scaling = scaling if scaling.values else parameters
    place = scaling if "rope_theta" in scaling.values else config
    if "rope_theta" not in place.values and config.values.get("model_type") is None:
        raise CheckpointError(
            f"{config.path}: rope_theta is missing, and model_type, which tells what it then is: "
            '10000 with model_type "new", 160000 with "gte"'
        )
    theta = place.positive("rope_theta", 160_000.0 if _native(config) else 10_000.0)
    kind = scaling.text(scaling.spelled("rope_type", "type"), "default")
    known = {
        "default": {"rope_theta", "rope_type", "type", "factor"},
        "ntk": {"rope_theta", "rope_type", "type", "factor", "mixed_b"},
    }
    strange = set(scaling.values) - known.get(kind, set())
    if kind not in known or strange or scaling.values.get("mixed_b") is not None:
        raise CheckpointError(
            f"{scaling.path}: {dict(scaling.values)!r} is not served; served: null, or type "
            '"default", or type "ntk" with a factor and without mixed_b'
        )
    if kind == "default":
        return Rotary(theta)
    if "factor" not in scaling.values:
        raise CheckpointError(f'{scaling.path}: factor is missing; type "ntk" needs one')
    factor = scaling.number("factor", 1.0)
    if factor < 1:
        raise CheckpointError(f"{scaling.path}: factor must be at least 1, got {factor}")
    return Rotary(theta, factor=factor)


def _native(config: ConfigFile) -> bool:
    return config.values.get("model_type") == "gte"


def _log_scaled(config: ConfigFile) -> bool:
    scaled = config.flag("logn_attention_scale", False)
    if scaled and _native(config):
        raise CheckpointError(
            f"{config.path}: logn_attention_scale is true, and model_type 'gte': Alibaba's code "
            "scales queries by the length of their text then, and transformers' class does not; "
            'expected false, or model_type "new"'
        )
    return scaled


def _config(config: ConfigFile, names: Names) -> EncoderConfig:
    config.require("position_embedding_type", ("rope", None), "rope", "GTE has rotary positions")
    config.require("layer_norm_type", ("layer_norm",), "layer_norm", "GTE has layer norms")
    length = config.size("max_position_embeddings", 8192 if _native(config) else 2048)
    fields = common_fields(config, names)
    fields["type_vocab_size"] = config.integer("type_vocab_size", 1)
    return EncoderConfig(
        **fields,
        head_size=own_head_size(config),
        position="rotary",
        max_length=length,
        rotary=_rotary(config),
        log_length=length if _log_scaled(config) else 0,
        log_length_at_least_one=config.flag("logn_attention_clip1", False),
        activation=config.activation(),
        gated=True,
        gate_first=False,
        up_bias=False,
        attention_dropout=config.number("attention_probs_dropout_prob", 0.0),
        feed_forward_dropout="both",
    )


IN_FILES = LayerNames(
    "embeddings.LayerNorm", "encoder.layer", ("attention.qkv_proj",), "attention.o_proj", "attn_ln",
    "mlp_ln", ("mlp.up_gate_proj",), "mlp.down_proj",
)  # fmt: skip


def _parts(config: EncoderConfig, names: Names) -> Parts:
    parts = embedding_parts(config)
    said = called(names, IN_FILES)
    for i in range(config.num_layers):
        apart = tuple(f"{said.layer}.{i}.attention.{x}_proj" for x in "qkv")
        if any(there(names, each) for each in apart):  # pack_qkv: false
            parts |= both(f"layers.{i}.attention.qkv", *apart)
        else:
            parts |= said.qkv_of(i)
        parts |= said.out_of(i) | said.feed_forward_of(i, up=weights) | said.norms_of(i)
    return parts


def _head(config: ConfigFile, names: Names) -> HeadNames:
    norm = "lm_head.norm" if "lm_head.norm.weight" in names else "lm_head.layer_norm"
    return HeadNames(
        HeadConfig(
            # transformers' code has GELU there, Alibaba's what config.json says.
            activation="gelu" if _native(config) else config.activation(),
            norm_eps=config.number("layer_norm_eps", 1e-12),
        ),
        dense="lm_head.dense",
        norm=norm,
        decoder="lm_head.decoder",
        biases=("lm_head.decoder.bias",),
    )


FAMILY = Family(
    name="GTE v1.5",
    checkpoints=(
        Published(
            "gte-base-en-v1.5, gte-large-en-v1.5, gte-multilingual-base",
            "golden",
            "8,192 by their files; rotary positions have no table",
        ),
        Published("snowflake-arctic-embed-m-v2.0 (model_type gte)", "golden", "8,192 by its files"),
        Published(
            "gte-multilingual-reranker-base",
            "unverified",
            "8,192 by its files; rotary positions have no table",
            "a reranker: CrossEncoder after pyenc.register(); layers as above, the classifier held "
            "against the written-out formula, its files not seen",
        ),
        Published(
            "stella_en_400M_v5",
            "unverified",
            "512 by its files",
            "the encoder alone; one of its dense folders at a time, as modules.json names it",
        ),
    ),
    signature=("encoder.layer.0.mlp.up_gate_proj.weight",),
    # nomic-bert's are called so in memory too, and have no such bias.
    other_signature=(*SIGNATURE, "layers.0.self_attn.q_proj.bias"),
    config=_config,
    parts=_parts,
    head=_head,
    classifier=POOLED,
    model_types=("new", "gte"),
    pooling="cls",
    prefixes=("", "new.", "gte.", "model."),
    tied={"lm_head.decoder.weight": "embeddings.word.weight"},
    layer=r"(?:encoder\.layer|layers)\.(\d+)\.",
)
