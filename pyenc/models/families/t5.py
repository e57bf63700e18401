"""T5's encoder: INSTRUCTOR, GTR, sentence-t5, jina-embedding-s/b/l-en-v1.

Raffel et al., arXiv 1910.10683. Pre-norm with RMSNorm and no bias anywhere, relative position
buckets held by the first block and added in all, scores that are not scaled. The sums of published
weights pass what float16 holds, so in float16 they are computed wider.
"""

from __future__ import annotations

from ...errors import CheckpointError
from ..config import EncoderConfig
from .config_file import ACTIVATION_NAMES, ConfigFile
from .family import Family, Published
from .parts import Names, Parts, weights

WORDS = "encoder.embed_tokens.weight"


def _activation(config: ConfigFile) -> tuple[str, bool]:
    """Activation by `feed_forward_proj`, and whether the feed-forward is gated."""
    default = "gated-gelu" if config.values.get("model_type") == "mt5" else "relu"
    said = config.text("feed_forward_proj", default)
    kind, _, name = said.rpartition("-")
    name = {"gated-gelu": "gelu_new"}.get(said, name)  # the meaning that old files have
    if kind not in ("", "gated") or name not in ACTIVATION_NAMES:
        raise CheckpointError(
            f"{config.path}: feed_forward_proj {said!r} is unknown; known: one of "
            f"{', '.join(ACTIVATION_NAMES)}, or gated-gelu and the like"
        )
    # Newer files say it again in two keys, which transformers reads last: they are what counts.
    activation = ACTIVATION_NAMES[name]
    if config.values.get("dense_act_fn") is not None:
        activation = config.activation("dense_act_fn")
    gated = config.values.get("is_gated_act") is not None
    return activation, config.flag("is_gated_act", False) if gated else bool(kind)


def _config(config: ConfigFile, names: Names) -> EncoderConfig:
    activation, gated = _activation(config)
    # transformers takes other families' names of the sizes as well.
    return EncoderConfig(
        vocab_size=config.size("vocab_size", 32128),
        hidden_size=config.size(config.spelled("d_model", "hidden_size"), 512),
        num_layers=config.size(config.spelled("num_layers", "num_hidden_layers"), 6),
        num_heads=config.size(config.spelled("num_heads", "num_attention_heads"), 8),
        intermediate_size=config.size("d_ff", 2048),
        head_size=config.size(config.spelled("d_kv", "head_dim"), 64),
        position="relative",
        relative_buckets=config.integer("relative_attention_num_buckets", 32),
        relative_max_distance=config.size("relative_attention_max_distance", 128),
        max_length=config.size("n_positions", 512),
        scale=1.0,
        activation=activation,
        gated=gated,
        qkv_bias=False,
        out_bias=False,
        up_bias=False,
        down_bias=False,
        norm="rms",
        norm_eps=config.number("layer_norm_epsilon", 1e-6),
        norm_first=True,
        embedding_norm=False,
        wide_residual=True,
        hidden_dropout=config.number("dropout_rate", 0.1),
        attention_dropout=config.number("dropout_rate", 0.1),
        feed_forward_dropout="both",
    )


def _parts(config: EncoderConfig, names: Names) -> Parts:
    parts: Parts = {
        # Some tools keep the one name, some the other, old files both.
        "embeddings.word.weight": ("shared.weight" if "shared.weight" in names else WORDS,),
        "relative_bias.weight": (
            "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight",
        ),
    }
    for i in range(config.num_layers):
        ours, theirs = f"layers.{i}", f"encoder.block.{i}.layer"
        attention, dense = f"{theirs}.0.SelfAttention", f"{theirs}.1.DenseReluDense"
        parts |= weights(f"{ours}.attention_norm", f"{theirs}.0.layer_norm")
        parts |= weights(f"{ours}.attention.qkv", *(f"{attention}.{x}" for x in "qkv"))
        parts |= weights(f"{ours}.attention.out", f"{attention}.o")
        parts |= weights(f"{ours}.feed_forward_norm", f"{theirs}.1.layer_norm")
        up = ("wi_0", "wi_1") if config.gated else ("wi",)
        parts |= weights(f"{ours}.feed_forward.up", *(f"{dense}.{x}" for x in up))
        parts |= weights(f"{ours}.feed_forward.down", f"{dense}.wo")
    parts |= weights("final_norm", "encoder.final_layer_norm")
    return parts


FAMILY = Family(
    name="T5",
    checkpoints=(
        Published(
            "instructor-base, -large, -xl",
            "golden",
            "512 by their files; relative positions have no table",
            "instruction masking as InstructorEmbedding 1.0.1",
        ),
        Published(
            "gtr-t5-*, sentence-t5-*, jina-embedding-s/b/l-en-v1",
            "golden",
            "512 by their files; relative positions have no table",
            "float16 is computed wider where its sums overflow",
        ),
    ),
    signature=("encoder.block.0.layer.0.SelfAttention.q.weight",),
    config=_config,
    parts=_parts,
    model_types=("t5", "mt5"),
    prefixes=("", "transformer.", "model."),
    set_aside=("decoder.", "lm_head.", "classification_head.", "classifier.", "qa_outputs."),
    tied={
        "lm_head.weight": "embeddings.word.weight",
        "decoder.embed_tokens.weight": "embeddings.word.weight",
    },
    same={WORDS: "shared.weight"},
    layer=r"encoder\.block\.(\d+)\.",
    layers_key="num_layers",
)
