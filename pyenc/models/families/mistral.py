"""e5-mistral-7b-instruct, SFR-Embedding-Mistral, Linq-Embed-Mistral, and encoders made of Llama.

Wang et al., arXiv 2401.00368: Mistral 7B's language model (Jiang et al., arXiv 2310.06825), whose
last token's state is the vector. Llama's layers (Touvron et al., arXiv 2302.13971), each of which
sees no more than a window of tokens; Llama's own have none. No token sees one after it, but in
Nvidia's encoders made of Llama (Babakhin et al., arXiv 2511.07025), which see both sides.
"""

from __future__ import annotations

from dataclasses import replace

from ...errors import CheckpointError
from ..config import EncoderConfig
from .config_file import ConfigFile, own_head_size
from .family import Family, Published
from .llama import (
    LAYER,
    SIGNATURE,
    language_model,
    optional,
    parts,
    refuse_both_sides,
)
from .parts import Names
from .windows import FULL, SLIDING, listed, refuse_windows


def _window(config: ConfigFile, layers: int, causal: bool) -> int | None:
    """How many tokens before its own a token sees, in every layer."""
    width = optional(config, "sliding_window", 4096)
    if width == 0:
        raise CheckpointError(f"{config.path}: sliding_window must be null or positive, got 0")
    kinds = listed(config, layers)
    if kinds is not None and any(local == (width is None) for local in kinds):
        wanted = FULL if width is None else SLIDING
        raise CheckpointError(
            f"{config.path}: layer_types are not all {wanted!r}, as sliding_window {width} makes "
            "them in transformers' class for this model_type; expected these, or no layer_types"
        )
    if width is None:
        return None
    refuse_both_sides(config, causal, f"sliding_window {width}")
    return width - 1  # the file's number counts the token itself


def _mistral(config: ConfigFile, names: Names) -> EncoderConfig:
    layers = config.size("num_hidden_layers", 32)
    heads = config.size("num_attention_heads", 32)
    causal = config.flag("is_causal", True)
    window, head_size = _window(config, layers, causal), own_head_size(config)
    if head_size is None:
        head_size = config.size("hidden_size", 4096) // heads
    return language_model(
        config,
        words=32_000,
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=optional(config, "num_key_value_heads", 8),
        head_size=head_size,
        intermediate_size=config.size("intermediate_size", 14_336),
        max_length=config.size("max_position_embeddings", 131_072),
        window=window,
        local=() if window is None else (True,) * layers,
        causal=causal,
        qkv_bias=False,
        out_bias=False,
        up_bias=False,
        down_bias=False,
    )


BOTH_SIDES = "llama_bidirec"


def _llama(config: ConfigFile, names: Names) -> EncoderConfig:
    both_sides = config.values.get("model_type") == BOTH_SIDES
    if both_sides:
        _check_both_sides(config)
    layers = config.size("num_hidden_layers", 32)
    config.require("sliding_window", (None,), None, "Llama's layers have no window")
    refuse_windows(config, layers, "Llama")
    biased, mlp_biased = config.flag("attention_bias", False), config.flag("mlp_bias", False)
    return language_model(
        config,
        words=32_000,
        known_code=both_sides,
        num_layers=layers,
        num_heads=config.size("num_attention_heads", 32),
        num_kv_heads=optional(config, "num_key_value_heads"),
        head_size=own_head_size(config),
        intermediate_size=config.size("intermediate_size", 11_008),
        max_length=config.size("max_position_embeddings", 2048),
        causal=not both_sides and config.flag("is_causal", True),
        qkv_bias=biased,
        out_bias=biased,
        up_bias=mlp_biased,
        down_bias=mlp_biased,
    )


def _check_both_sides(config: ConfigFile) -> None:
    """Nvidia's code, of which there are several versions, sees both sides."""
    config.require("is_causal", (False, None), None, "the code of this model_type sees both sides")
    config.require(
        "pooling", ("avg", None), None, "pyenc takes the mean where this file has the last word"
    )


FAMILY = Family(
    name="Mistral",
    checkpoints=(
        Published(
            "e5-mistral-7b-instruct, SFR-Embedding-Mistral, Linq-Embed-Mistral",
            "golden",
            "32,768 by e5's files, 4,096 by its authors; rotary positions have no table",
            "a text ends as tokenizer_config.json says (add_eos_token), which transformers 5 "
            "passes over",
        ),
    ),
    signature=SIGNATURE,
    # Other models of the same names (Llama's, Qwen's of several kinds) have other arithmetic.
    accepts=lambda config: config.values.get("model_type") == "mistral",
    config=_mistral,
    parts=lambda config, names: parts(config),
    model_types=("mistral",),
    prefixes=("", "model."),
    set_aside=("lm_head.",),
    tied={"lm_head.weight": "embeddings.word.weight"},
    layer=LAYER,
)

FAMILY_LLAMA = replace(
    FAMILY,
    name="Llama",
    checkpoints=(
        Published(
            "encoders made of Llama 1, 2 and 3",
            "golden",
            "by their files; rotary positions have no table",
            "rope scalings held against transformers' class: linear, llama3 (Llama 3.1 and later) "
            "and yarn",
        ),
        Published(
            "llama-nemotron-embed-1b-v2, llama-embed-nemotron-8b",
            "unverified",
            "by their files; rotary positions have no table",
            "layers held against transformers' class with is_causal false, as their code is known "
            "to be; their files not seen",
        ),
    ),
    accepts=lambda config: config.values.get("model_type") in ("llama", BOTH_SIDES),
    config=_llama,
    model_types=("llama", BOTH_SIDES),
)
