"""ModernBERT: gte-modernbert-base, modernbert-embed-base, ettin, mmBERT.

Warner et al., arXiv 2412.13663. Pre-norm, rotary positions with a base of their own in the layers
that see a window, a gated feed-forward whose first rows are the gate, no norm before the first
layer's attention. `config.json` is spelled in two ways, of transformers 4 and of 5.
"""

from __future__ import annotations

from ...errors import CheckpointError
from ..config import EncoderConfig
from ..head_config import HeadConfig
from .config_file import ConfigFile, require_unscaled
from .family import Family, HeadNames, Published
from .parts import Names, Parts, both, weights
from .windows import FULL, SLIDING, every, listed, rotary_of


def _local(config: ConfigFile, layers: int) -> tuple[bool, ...]:
    """Which layers see a window: by a list, or every layer but each n-th from the first."""
    if (local := listed(config, layers)) is not None:
        return local
    n = every(config, "global_attn_every_n_layers", 3)
    return tuple(i % n != 0 for i in range(layers))


def _window(config: ConfigFile) -> int:
    """Keys on each side: half of `local_attention`, or `sliding_window`, as transformers 5 reads
    it."""
    half = config.integer("local_attention", 128) // 2
    if config.values.get("sliding_window") is None:
        return half
    said = config.integer("sliding_window")
    if config.values.get("local_attention") is not None and said != half:
        raise CheckpointError(
            f"{config.path}: sliding_window is {said}, but local_attention makes it {half}, two "
            "spellings of one setting"
        )
    return said


def _config(config: ConfigFile, names: Names) -> EncoderConfig:
    layers = config.size("num_hidden_layers", 22)
    whole = rotary_of(config, FULL, "global_rope_theta", 160_000.0, "ModernBERT")
    if whole is None:
        raise CheckpointError(f"{config.path}: global_rope_theta is null; expected a number")
    require_unscaled(config, "pyenc serves ModernBERT without scaling")
    size, heads = config.size("hidden_size", 768), config.size("num_attention_heads", 12)
    why = "ModernBERT's are hidden_size / num_attention_heads"
    config.require("head_dim", (size // heads, None), None, why)
    biased, mlp_biased = config.flag("attention_bias", False), config.flag("mlp_bias", False)
    return EncoderConfig(
        vocab_size=config.size("vocab_size", 50368),
        hidden_size=size,
        num_layers=layers,
        num_heads=heads,
        intermediate_size=config.size("intermediate_size", 1152),
        position="rotary",
        max_length=config.size("max_position_embeddings", 8192),
        rotary=whole,
        local_rotary=rotary_of(config, SLIDING, "local_rope_theta", 10_000.0, "ModernBERT"),
        window=_window(config),
        local=_local(config, layers),
        activation=config.activation("hidden_activation"),
        gated=True,
        qkv_bias=biased,
        out_bias=biased,
        up_bias=mlp_biased,
        down_bias=mlp_biased,
        norm_eps=config.number("norm_eps", 1e-5),
        norm_bias=config.flag("norm_bias", False),
        norm_first=True,
        first_norm=False,
        hidden_dropout=config.number("mlp_dropout", 0.0),
        attention_dropout=config.number("attention_dropout", 0.0),
        embedding_dropout=config.number("embedding_dropout", 0.0),
        # One number for the weights and for what comes of them.
        output_dropout=config.number("attention_dropout", 0.0),
        final_dropout=0.0,
        feed_forward_dropout="inner",
    )


def _parts(config: EncoderConfig, names: Names) -> Parts:
    parts: Parts = {"embeddings.word.weight": ("embeddings.tok_embeddings.weight",)}
    norm, linear, dense = (
        both if bias else weights for bias in (config.norm_bias, config.qkv_bias, config.up_bias)
    )
    parts |= norm("embeddings.norm", "embeddings.norm")
    for i in range(config.num_layers):
        layer = f"layers.{i}"
        if i:
            parts |= norm(f"{layer}.attention_norm", f"{layer}.attn_norm")
        parts |= linear(f"{layer}.attention.qkv", f"{layer}.attn.Wqkv")
        parts |= linear(f"{layer}.attention.out", f"{layer}.attn.Wo")
        parts |= norm(f"{layer}.feed_forward_norm", f"{layer}.mlp_norm")
        parts |= dense(f"{layer}.feed_forward.up", f"{layer}.mlp.Wi")
        parts |= dense(f"{layer}.feed_forward.down", f"{layer}.mlp.Wo")
    return parts | norm("final_norm", "final_norm")


def _head(config: ConfigFile, names: Names) -> HeadNames:
    # Classifiers have layers of the same names, and no decoder.
    decoder = any(name.startswith("decoder.") for name in names)
    if not decoder and any(name.startswith("classifier.") for name in names):
        raise CheckpointError("head.dense and head.norm are those of a classifier")
    return HeadNames(
        HeadConfig(
            activation=config.activation("classifier_activation"),
            norm_eps=config.number("norm_eps", 1e-5),
            dense_bias=config.flag("classifier_bias", False),
            norm_bias=config.flag("norm_bias", False),
            bias=config.flag("decoder_bias", True),
        ),
        dense="head.dense",
        norm="head.norm",
        decoder="decoder",
        biases=("decoder.bias",),
    )


FAMILY = Family(
    name="ModernBERT",
    checkpoints=(
        Published(
            "gte-modernbert-base, modernbert-embed-base, ModernBERT-base, -large",
            "golden",
            "8,192 by their files; rotary positions have no table",
        ),
        Published(
            "ettin, mmBERT", "golden", "8,192 by their files", "config.json of transformers 5"
        ),
    ),
    signature=("layers.0.attn.Wqkv.weight", "embeddings.tok_embeddings.weight"),
    config=_config,
    parts=_parts,
    head=_head,
    model_types=("modernbert",),
    prefixes=("", "model."),
    set_aside=("head.", "decoder.", "classifier."),
    tied={"decoder.weight": "embeddings.word.weight"},
    layer=r"layers\.(\d+)\.",
)
