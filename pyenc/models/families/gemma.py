"""embeddinggemma-300m, and other encoders made of Gemma 3.

Gemma 3, arXiv 2503.19786; embeddinggemma, arXiv 2509.20354, sees both sides, others see no token
after their own. Pre-norm, and a norm of each term before it is added; RMSNorms that multiply by one
plus their weight; keys and values shared by several heads; two rotary bases, the wider one of
larger models scaled; a window in all layers but every sixth.
"""

from __future__ import annotations

import math

from ...errors import CheckpointError
from ..config import EncoderConfig
from ..rotary import Rotary
from .config_file import ConfigFile
from .family import Family, Published
from .parts import Names, Parts, both, weights
from .windows import FULL, SLIDING, every, listed, rotary_of


def _local(config: ConfigFile, layers: int) -> tuple[bool, ...]:
    """Which layers see a window: by a list, or every layer but each n-th."""
    if (local := listed(config, layers)) is not None:
        return local
    n = every(config, "sliding_window_pattern", 6)
    return tuple((i + 1) % n != 0 for i in range(layers))


def _rotary(config: ConfigFile, kind: str, key: str, default: float, scaling: str = "") -> Rotary:
    rotary = rotary_of(config, kind, key, default, "Gemma", scaling)
    if rotary is None:
        raise CheckpointError(f"{config.path}: {key} is null; expected a number")
    return rotary


def _causal(config: ConfigFile) -> bool:
    """Of two keys one is served: the other moves the end of transformers' windows by one."""
    if not config.flag("is_causal", True):
        raise CheckpointError(
            f"{config.path}: is_causal false is not served of Gemma, whose layers see both sides "
            "where use_bidirectional_attention is true; expected true, or that key alone"
        )
    if config.values.get("use_bidirectional_attention") is None:
        return True
    return not config.flag("use_bidirectional_attention", False)


def _window(config: ConfigFile, causal: bool) -> int:
    """Keys on a side."""
    if not causal:  # the file's number is of both sides together
        return config.integer("sliding_window", 4096) // 2
    return config.size("sliding_window", 4096) - 1  # and here it counts the token itself


def _config(config: ConfigFile, names: Names) -> EncoderConfig:
    config.require("attn_logit_softcapping", (None,), None, "pyenc serves Gemma without it")
    causal = _causal(config)
    layers, hidden = config.size("num_hidden_layers", 26), config.size("hidden_size", 2304)
    local = _local(config, layers)
    scaled = config.positive("query_pre_attn_scalar", 256.0)
    biased = config.flag("attention_bias", False)
    return EncoderConfig(
        vocab_size=config.size("vocab_size", 262_208),
        hidden_size=hidden,
        num_layers=layers,
        num_heads=config.size("num_attention_heads", 8),
        num_kv_heads=config.size("num_key_value_heads", 4),
        head_size=config.size("head_dim", 256),
        intermediate_size=config.size("intermediate_size", 9216),
        position="rotary",
        max_length=config.size("max_position_embeddings", 131_072),
        rotary=_rotary(config, FULL, "rope_theta", 1_000_000.0, "rope_scaling"),
        local_rotary=_rotary(config, SLIDING, "rope_local_base_freq", 10_000.0),
        window=_window(config, causal) if any(local) else None,
        local=local,
        causal=causal,
        scale=scaled**-0.5,
        embedding_scale=math.sqrt(hidden),
        activation=config.activation("hidden_activation", "gelu_pytorch_tanh"),
        gated=True,
        qkv_bias=biased,
        out_bias=biased,
        up_bias=False,
        down_bias=False,
        norm="rms",
        norm_eps=config.number("rms_norm_eps", 1e-6),
        norm_plus_one=True,
        norm_first=True,
        term_norm=True,
        embedding_norm=False,
        wide_residual=True,
        head_norm=True,
        attention_dropout=config.number("attention_dropout", 0.0),
    )


def _parts(config: EncoderConfig, names: Names) -> Parts:
    parts: Parts = {"embeddings.word.weight": ("embed_tokens.weight",)}
    linear = both if config.qkv_bias else weights
    for i in range(config.num_layers):
        layer = f"layers.{i}"
        theirs, mlp = f"{layer}.self_attn", f"{layer}.mlp"
        parts |= weights(f"{layer}.attention_norm", f"{layer}.input_layernorm")
        parts |= linear(f"{layer}.attention.qkv", *(f"{theirs}.{x}_proj" for x in "qkv"))
        parts |= weights(f"{layer}.attention.q_norm", f"{theirs}.q_norm")
        parts |= weights(f"{layer}.attention.k_norm", f"{theirs}.k_norm")
        parts |= linear(f"{layer}.attention.out", f"{theirs}.o_proj")
        parts |= weights(f"{layer}.attention_term_norm", f"{layer}.post_attention_layernorm")
        parts |= weights(f"{layer}.feed_forward_norm", f"{layer}.pre_feedforward_layernorm")
        parts |= weights(f"{layer}.feed_forward.up", f"{mlp}.gate_proj", f"{mlp}.up_proj")
        parts |= weights(f"{layer}.feed_forward.down", f"{mlp}.down_proj")
        parts |= weights(f"{layer}.feed_forward_term_norm", f"{layer}.post_feedforward_layernorm")
    return parts | weights("final_norm", "norm")


FAMILY = Family(
    name="Gemma",
    checkpoints=(
        Published(
            "embeddinggemma-300m", "golden", "2,048 by its files; rotary positions have no table"
        ),
        Published(
            "harrier-oss-v1-270m, -27b",
            "unverified",
            "32,768 by their model card; rotary positions have no table",
            "no token sees one after it; layers held against transformers' class, their files not "
            "seen",
        ),
    ),
    signature=("layers.0.self_attn.q_norm.weight", "layers.0.pre_feedforward_layernorm.weight"),
    config=_config,
    parts=_parts,
    model_types=("gemma3_text",),
    prefixes=("", "model."),
    set_aside=("lm_head.",),
    tied={"lm_head.weight": "embeddings.word.weight"},
    layer=r"layers\.(\d+)\.",
)
