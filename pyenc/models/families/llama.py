"""What families with Llama's layers have in common, by transformers' names: EuroBERT, Llama,
Mistral and Qwen.

Pre-norm with RMSNorm, rotary positions, keys and values that several heads may share, a gated
feed-forward whose first rows are the gate.
"""

from __future__ import annotations

from typing import Any

from ...errors import CheckpointError
from ..config import EncoderConfig
from .config_file import ConfigFile
from .parts import Parts, both, weights
from .rope import rotary

SIGNATURE = (
    "layers.0.self_attn.q_proj.weight", "layers.0.post_attention_layernorm.weight",
    "layers.0.mlp.gate_proj.weight",
)  # fmt: skip

LAYER = r"layers\.(\d+)\."


def optional(config: ConfigFile, key: str, unsaid: int | None = None) -> int | None:
    """A whole number; null is none of one's own."""
    if config.values.get(key, unsaid) is None:
        return None
    return config.integer(key, unsaid)


def refuse_code(config: ConfigFile) -> None:
    """Code of a checkpoint's own is mostly there to change which tokens see which."""
    named = config.section("auto_map").values
    if code := [named[key] for key in sorted(named) if key.startswith("AutoModel")]:
        raise CheckpointError(
            f"{config.path}: auto_map names code of the checkpoint's own for its layers, "
            f"{code[0]!r}, which pyenc does not run and does not know; expected none: served are "
            "the layers of transformers' class, to both sides where is_causal is false"
        )


def refuse_both_sides(config: ConfigFile, causal: bool, setting: str) -> None:
    """Of layers with windows."""
    if not causal:
        raise CheckpointError(
            f"{config.path}: is_causal false with windows ({setting}) is not served: "
            "transformers' attentions differ in how far they reach"
        )


def is_minus_one(config: ConfigFile) -> bool:
    """Whether the id of padding is said to be -1, which is that of no token."""
    said = config.values.get("pad_token_id")
    return type(said) is int and said == -1


def padding(config: ConfigFile, words: int, unsaid: int | None = None) -> int | None:
    """The id of padding, whose row takes no gradient; -1 is that of the last row, as torch counts
    the rows of a table (Llama 1's files say so, and have no padding)."""
    if is_minus_one(config):
        return words - 1
    found = optional(config, "pad_token_id", unsaid)
    if found is not None and found >= words:
        raise CheckpointError(
            f"{config.path}: pad_token_id must be null or one of the {words} of vocab_size, got "
            f"{found}"
        )
    return found


def language_model(
    config: ConfigFile, words: int, *, known_code: bool = False, **own: Any
) -> EncoderConfig:
    """What config.json says the same way in every language model of these layers.

    Args:
        config: `config.json`.
        words: of the vocabulary, where the file does not say it.
        known_code: whether the family knows the code that it names for its layers, if any.
        own: the other fields.
    """
    if not known_code:
        refuse_code(config)
    words = config.size("vocab_size", words)
    return EncoderConfig(
        vocab_size=words,
        hidden_size=config.size("hidden_size", 4096),
        position="rotary",
        rotary=rotary(config, 10_000.0),
        padding_row=padding(config, words),
        activation=config.activation("hidden_act", "silu"),
        gated=True,
        norm="rms",
        norm_eps=config.number("rms_norm_eps", 1e-6),
        norm_first=True,
        embedding_norm=False,
        attention_dropout=config.number("attention_dropout", 0.0),
        **own,
    )


def parts(config: EncoderConfig) -> Parts:
    """Every parameter, biases and norms of heads as the encoder has them."""
    found: Parts = {"embeddings.word.weight": ("embed_tokens.weight",)}
    qkv, out, up, down = (
        both if bias else weights
        for bias in (config.qkv_bias, config.out_bias, config.up_bias, config.down_bias)
    )
    for i in range(config.num_layers):
        layer = f"layers.{i}"
        theirs, mlp = f"{layer}.self_attn", f"{layer}.mlp"
        found |= weights(f"{layer}.attention_norm", f"{layer}.input_layernorm")
        found |= qkv(f"{layer}.attention.qkv", *(f"{theirs}.{x}_proj" for x in "qkv"))
        if config.head_norm:
            found |= weights(f"{layer}.attention.q_norm", f"{theirs}.q_norm")
            found |= weights(f"{layer}.attention.k_norm", f"{theirs}.k_norm")
        found |= out(f"{layer}.attention.out", f"{theirs}.o_proj")
        found |= weights(f"{layer}.feed_forward_norm", f"{layer}.post_attention_layernorm")
        found |= up(f"{layer}.feed_forward.up", f"{mlp}.gate_proj", f"{mlp}.up_proj")
        found |= down(f"{layer}.feed_forward.down", f"{mlp}.down_proj")
    return found | weights("final_norm", "norm")
