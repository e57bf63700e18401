"""EuroBERT: EuroBERT-210m, -610m, -2.1B, and sentence encoders made of them.

Boizard et al., arXiv 2503.05500. Llama's layers with attention to both sides: pre-norm with
RMSNorm, rotary positions, a gated feed-forward whose first rows are the gate, keys and values that
several heads may share. Its padding is the token that ends every text.
"""

from __future__ import annotations

from ...errors import CheckpointError
from ..config import EncoderConfig, HeadConfig
from ..rotary import Rotary
from .family import ConfigFile, Family, HeadNames, Names, Parts, Published, both, weights

MODEL_TYPE = "eurobert"


def _rotary(config: ConfigFile) -> Rotary:
    """By `rope_theta`, as the original code spells it, or `rope_parameters`, as transformers 5."""
    sections = [config.section(key) for key in ("rope_parameters", "rope_scaling")]
    said = [section for section in sections if section.values]
    if len(said) == 2 and said[0].values != said[1].values:
        raise CheckpointError(
            f"{config.path}: rope_parameters is {dict(said[0].values)!r} and rope_scaling is "
            f"{dict(said[1].values)!r}, two spellings of one setting"
        )
    scaling = (said or sections)[0]
    whole = "partial_rotary_factor"
    config.require(whole, (1.0, None), None, "pyenc turns whole heads")
    strange = scaling.values.keys() - {"rope_theta", "rope_type", "type", whole}
    kind = scaling.text(scaling.spelled("rope_type", "type"), "default")
    if kind != "default" or strange or scaling.values.get(whole, 1.0) != 1.0:
        raise CheckpointError(
            f"{scaling.path}: {dict(scaling.values)!r} is not served; served: rope_theta with "
            'rope_type "default"'
        )
    theta, outer = scaling.values.get("rope_theta"), config.values.get("rope_theta")
    if theta is not None and outer is not None and theta != outer:
        raise CheckpointError(
            f"{config.path}: rope_theta is {outer!r}, and {theta!r} in {scaling.path}, two "
            "spellings of one setting"
        )
    if theta is None and outer is None:
        raise CheckpointError(
            f"{config.path}: rope_theta is missing: 250000 in the original code, 10000 in "
            "transformers 5"
        )
    place = config if theta is None else scaling
    number = place.number("rope_theta", 0.0)
    if not number:
        raise CheckpointError(f"{place.path}: rope_theta must be positive, got 0")
    return Rotary(number)


def _optional(config: ConfigFile, key: str, unsaid: int | None = None) -> int | None:
    """A whole number; null is none of one's own."""
    if config.values.get(key, unsaid) is None:
        return None
    return config.integer(key, unsaid)


def _padding(config: ConfigFile, words: int) -> int | None:
    padding = _optional(config, "pad_token_id", 128_001)
    if padding is not None and padding >= words:
        raise CheckpointError(
            f"{config.path}: pad_token_id must be null or one of the {words} of vocab_size, got "
            f"{padding}"
        )
    return padding


def _config(config: ConfigFile, names: Names) -> EncoderConfig:
    words = config.integer("vocab_size", 128_256)
    hidden, heads = config.integer("hidden_size", 768), config.integer("num_attention_heads", 12)
    biased, mlp_biased = config.flag("attention_bias", False), config.flag("mlp_bias", False)
    return EncoderConfig(
        vocab_size=words,
        hidden_size=hidden,
        num_layers=config.integer("num_hidden_layers", 12),
        num_heads=heads,
        num_kv_heads=_optional(config, "num_key_value_heads"),
        head_size=_optional(config, "head_dim"),
        intermediate_size=config.integer("intermediate_size", 3072),
        position="rotary",
        max_length=config.integer("max_position_embeddings", 8192),
        rotary=_rotary(config),
        padding_row=_padding(config, words),
        activation=config.activation("hidden_act", "silu"),
        gated=True,
        qkv_bias=biased,
        out_bias=biased,
        up_bias=mlp_biased,
        down_bias=mlp_biased,
        norm="rms",
        norm_eps=config.number("rms_norm_eps", 1e-5),
        norm_first=True,
        embedding_norm=False,
        attention_dropout=config.number("attention_dropout", 0.0),
    )


def _parts(config: EncoderConfig, names: Names) -> Parts:
    parts: Parts = {"embeddings.word.weight": ("embed_tokens.weight",)}
    linear, dense = (both if bias else weights for bias in (config.qkv_bias, config.up_bias))
    for i in range(config.num_layers):
        layer = f"layers.{i}"
        theirs, mlp = f"{layer}.self_attn", f"{layer}.mlp"
        parts |= weights(f"{layer}.attention_norm", f"{layer}.input_layernorm")
        parts |= linear(f"{layer}.attention.qkv", *(f"{theirs}.{x}_proj" for x in "qkv"))
        parts |= linear(f"{layer}.attention.out", f"{theirs}.o_proj")
        parts |= weights(f"{layer}.feed_forward_norm", f"{layer}.post_attention_layernorm")
        parts |= dense(f"{layer}.feed_forward.up", f"{mlp}.gate_proj", f"{mlp}.up_proj")
        parts |= dense(f"{layer}.feed_forward.down", f"{mlp}.down_proj")
    return parts | weights("final_norm", "norm")


def _head(config: ConfigFile, names: Names) -> HeadNames:
    # Where nothing is stored of a head that is tied, config.json alone tells of it.
    decoder = any(name.startswith("lm_head.") for name in names)
    if not decoder and any(name.startswith("classifier.") for name in names):
        raise CheckpointError("the weights are those of a classifier")
    return HeadNames(
        HeadConfig(transform=False, bias=config.flag("mlp_bias", False)),
        decoder="lm_head",
        biases=("lm_head.bias",),
        tie_unsaid=False,
    )


FAMILY = Family(
    name="EuroBERT",
    checkpoints=(
        Published(
            "EuroBERT-210m, -610m, -2.1B",
            "golden",
            "8,192 by their files; rotary positions have no table",
        ),
    ),
    signature=(
        "layers.0.self_attn.q_proj.weight", "layers.0.post_attention_layernorm.weight",
        "layers.0.mlp.gate_proj.weight",
    ),
    # Decoders of the same names (Llama's) see no token after their own.
    accepts=lambda config: config.values.get("model_type") == MODEL_TYPE,
    config=_config,
    parts=_parts,
    head=_head,
    model_types=(MODEL_TYPE,),
    prefixes=("", "model."),
    set_aside=("lm_head.", "dense.", "classifier."),
    tied={"lm_head.weight": "embeddings.word.weight"},
    layer=r"layers\.(\d+)\.",
)  # fmt: skip
