"""embeddinggemma-300m, bge-multilingual-gemma2, and other encoders made of Gemma 3, 2 and 1.

Pre-norm; RMSNorms that multiply by one plus their weight, word embeddings that are scaled; keys and
values shared by several heads. Gemma 3, arXiv 2503.19786: a norm of each term before it is added
and of each head; two rotary bases, the wider one of larger models scaled; a window in all layers
but every sixth. Of it embeddinggemma, arXiv 2509.20354, sees both sides, all others see no token
after their own. Gemma 2, arXiv 2408.00118: one base, a soft cap of the scores, a window in every
other layer, no norm of heads. Gemma 1, arXiv 2403.08295: none of these, and no norm of terms.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from ...errors import CheckpointError
from ..config import EncoderConfig
from ..rotary import Rotary
from .config_file import ConfigFile
from .family import Family, Published
from .llama import LAYER, SIGNATURE, padding, refuse_code
from .parts import Names, Parts, both, weights
from .rope import rotary
from .windows import FULL, SLIDING, every, listed, refuse_windows, rotary_of


def _local(config: ConfigFile, layers: int, whole: int) -> tuple[bool, ...]:
    """Which layers see a window: by a list, or every layer but each whole-th."""
    if (local := listed(config, layers)) is not None:
        return local
    return tuple((i + 1) % whole != 0 for i in range(layers))


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


def _cap(config: ConfigFile) -> float | None:
    """Soft cap of the scores; null: none."""
    key, unsaid = "attn_logit_softcapping", 50.0
    return None if config.values.get(key, unsaid) is None else config.positive(key, unsaid)


def _one_side(config: ConfigFile, version: int) -> None:
    """That no token sees one after it, which transformers' classes of Gemma 1 and 2 undo in part
    by the one key and in part by the other."""
    why = f"no token of Gemma {version} sees one after it, as pyenc serves it"
    config.require("is_causal", (True,), True, why)
    config.require("use_bidirectional_attention", (False, None), None, why)


def _scale(config: ConfigFile) -> float:
    return float(config.positive("query_pre_attn_scalar", 256.0) ** -0.5)


def _common(config: ConfigFile, sizes: dict[str, int], **own: Any) -> EncoderConfig:
    """What all three have in common.

    Args:
        config: `config.json`.
        sizes: keys of it, and what they are where it does not say so.
        own: the other fields.
    """
    refuse_code(config)
    words = config.size("vocab_size", sizes["vocab_size"])
    undropped = config.values.get("attention_dropout", 0.0) is None
    hidden = config.size("hidden_size", sizes["hidden_size"])
    biased = config.flag("attention_bias", False)
    return EncoderConfig(
        vocab_size=words,
        hidden_size=hidden,
        num_layers=config.size("num_hidden_layers", sizes["num_hidden_layers"]),
        num_heads=config.size("num_attention_heads", sizes["num_attention_heads"]),
        num_kv_heads=config.size("num_key_value_heads", sizes["num_key_value_heads"]),
        head_size=config.size("head_dim", 256),
        intermediate_size=config.size("intermediate_size", sizes["intermediate_size"]),
        position="rotary",
        max_length=config.size("max_position_embeddings", sizes["max_position_embeddings"]),
        padding_row=padding(config, words, 0),
        embedding_scale=math.sqrt(hidden),
        gated=True,
        qkv_bias=biased,
        out_bias=biased,
        up_bias=False,
        down_bias=False,
        norm="rms",
        norm_eps=config.number("rms_norm_eps", 1e-6),
        norm_plus_one=True,
        norm_first=True,
        embedding_norm=False,
        wide_residual=True,
        attention_dropout=0.0 if undropped else config.number("attention_dropout", 0.0),
        **own,
    )


SIZES = {
    "vocab_size": 262_208, "hidden_size": 2304, "num_hidden_layers": 26, "num_attention_heads": 8,
    "num_key_value_heads": 4, "intermediate_size": 9216, "max_position_embeddings": 131_072,
}  # fmt: skip
SIZES_2 = SIZES | {"vocab_size": 256_000, "max_position_embeddings": 8192}
SIZES_1 = SIZES_2 | {
    "hidden_size": 3072, "num_hidden_layers": 28, "num_attention_heads": 16,
    "num_key_value_heads": 16, "intermediate_size": 24_576,
}  # fmt: skip
"""As transformers' classes have them."""

_PASSED_OVER = "transformers' class of Gemma {} passes over it, and Gemma 2's does not"


def _config(config: ConfigFile, names: Names) -> EncoderConfig:
    config.require("attn_logit_softcapping", (None,), None, _PASSED_OVER.format(3))
    causal = _causal(config)
    layers = config.size("num_hidden_layers", SIZES["num_hidden_layers"])
    local = _local(config, layers, every(config, "sliding_window_pattern", 6))
    return _common(
        config,
        SIZES,
        rotary=_rotary(config, FULL, "rope_theta", 1_000_000.0, "rope_scaling"),
        local_rotary=_rotary(config, SLIDING, "rope_local_base_freq", 10_000.0),
        window=_window(config, causal) if any(local) else None,
        local=local,
        causal=causal,
        scale=_scale(config),
        activation=config.activation("hidden_activation", "gelu_pytorch_tanh"),
        term_norm=True,
        head_norm=True,
    )


def _config_2(config: ConfigFile, names: Names) -> EncoderConfig:
    _one_side(config, 2)
    layers = config.size("num_hidden_layers", SIZES_2["num_hidden_layers"])
    local = _local(config, layers, 2)
    return _common(
        config,
        SIZES_2,
        rotary=rotary(config, 10_000.0),
        window=_window(config, True) if any(local) else None,
        local=local,
        causal=True,
        scale=_scale(config),
        score_cap=_cap(config),
        activation=config.activation("hidden_activation", "gelu_pytorch_tanh"),
        term_norm=True,
    )


def _config_1(config: ConfigFile, names: Names) -> EncoderConfig:
    _one_side(config, 1)
    for key in ("attn_logit_softcapping", "query_pre_attn_scalar", "sliding_window"):
        config.require(key, (None,), None, _PASSED_OVER.format(1))
    layers = config.size("num_hidden_layers", SIZES_1["num_hidden_layers"])
    refuse_windows(config, layers, "Gemma 1")
    return _common(
        config,
        SIZES_1,
        rotary=rotary(config, 10_000.0),
        causal=True,
        activation=_activation_1(config),
    )


def _activation_1(config: ConfigFile) -> str:
    """By the key that transformers reads, where "gelu" is what the first files call its
    approximation; versions before read another, which must not say otherwise."""
    unsaid = "gelu_pytorch_tanh"
    first = config.values.get("hidden_act", unsaid) == "gelu"
    activation = "gelu_tanh" if first else config.activation("hidden_act", unsaid)
    if config.values.get("hidden_activation") is not None:
        other = config.activation("hidden_activation")
        if other != activation:
            raise CheckpointError(
                f"{config.path}: hidden_activation {config.values['hidden_activation']!r} is not "
                f"what hidden_act {config.values.get('hidden_act', unsaid)!r} stands for, "
                f"{activation}, and transformers' versions read one or the other; expected null or "
                "what is the same"
            )
    return activation


def _parts(config: EncoderConfig, names: Names) -> Parts:
    parts: Parts = {"embeddings.word.weight": ("embed_tokens.weight",)}
    linear = both if config.qkv_bias else weights
    for i in range(config.num_layers):
        layer = f"layers.{i}"
        theirs, mlp = f"{layer}.self_attn", f"{layer}.mlp"
        parts |= weights(f"{layer}.attention_norm", f"{layer}.input_layernorm")
        parts |= linear(f"{layer}.attention.qkv", *(f"{theirs}.{x}_proj" for x in "qkv"))
        if config.head_norm:
            parts |= weights(f"{layer}.attention.q_norm", f"{theirs}.q_norm")
            parts |= weights(f"{layer}.attention.k_norm", f"{theirs}.k_norm")
        parts |= linear(f"{layer}.attention.out", f"{theirs}.o_proj")
        second = "post_attention_layernorm"
        if config.term_norm:
            parts |= weights(f"{layer}.attention_term_norm", f"{layer}.{second}")
            last = f"{layer}.post_feedforward_layernorm"
            parts |= weights(f"{layer}.feed_forward_term_norm", last)
            second = "pre_feedforward_layernorm"
        parts |= weights(f"{layer}.feed_forward_norm", f"{layer}.{second}")
        parts |= weights(f"{layer}.feed_forward.up", f"{mlp}.gate_proj", f"{mlp}.up_proj")
        parts |= weights(f"{layer}.feed_forward.down", f"{mlp}.down_proj")
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
    layer=LAYER,
)

FAMILY_2 = replace(
    FAMILY,
    name="Gemma 2",
    checkpoints=(
        Published(
            "bge-multilingual-gemma2",
            "golden",
            "8,192 by its files; rotary positions have no table",
            "its own files not seen; scores under a soft cap, as transformers' eager attention "
            "and flash attention have them",
        ),
    ),
    signature=("layers.0.self_attn.q_proj.weight", "layers.0.pre_feedforward_layernorm.weight"),
    # Other models of the same names see both sides, or have other norms.
    accepts=lambda config: config.values.get("model_type") == "gemma2",
    config=_config_2,
    model_types=("gemma2",),
)

FAMILY_1 = replace(
    FAMILY,
    name="Gemma 1",
    checkpoints=(
        Published(
            "encoders made of Gemma 1",
            "golden",
            "8,192 by their files; rotary positions have no table",
        ),
    ),
    signature=SIGNATURE,
    # Other models of the same names (Llama's, Mistral's) have other arithmetic.
    accepts=lambda config: config.values.get("model_type") == "gemma",
    config=_config_1,
    model_types=("gemma",),
)
