"""jina-embeddings-v3: XLM-RoBERTa with rotary positions; jina-reranker-v2, which has a table.

Sturua et al., arXiv 2409.10173. Post-norm, every layer with biases. The tensors have the names of
the original code (`model_type: xlm-roberta`, mixer.Wqkv), which transformers writes too
(`jina_embeddings_v3`), or those that its model has in memory. The adapters of its tasks are merged
into the weights as they are read (`pyenc.loading.tasks`). A table's positions are counted from the
padding id, as XLM-RoBERTa's are.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ...errors import CheckpointError
from ..config import EncoderConfig
from ..head_config import HeadConfig
from ..rotary import Rotary
from .config_file import ConfigFile, common_fields, own_head_size, require_unscaled
from .family import DENSE, Family, HeadNames, Published
from .heads import roberta_head
from .in_memory import IN_MEMORY, LayerNames, called
from .parts import Names, Parts, both
from .roberta import counted

ORIGINAL = "xlm-roberta"
"""What the original calls itself, as every XLM-RoBERTa does."""

NOT_SERVED = {
    "rotary_emb_interleaved": False, "rotary_emb_scale_base": None, "last_layer_subset": False,
    "pad_vocab_size_multiple": 1, "truncate_dim": None,
}  # fmt: skip
"""Settings of the original code alone; `truncate_dim` cuts what its `encode` gives."""


def original(config: ConfigFile) -> bool:
    """jina-reranker-v2's file has no `model_type`; transformers' code knows no table."""
    kind = config.values.get("model_type")
    return kind == ORIGINAL or (kind is None and has_table(config))


def has_table(config: ConfigFile) -> bool:
    return config.values.get("position_embedding_type") == "absolute"


OF_ADAPTERS = (
    "lora_adaptations", "lora_alpha", "lora_dropout_p", "lora_main_params_trainable", "lora_rank",
    "load_trained_adapters", "task_instructions",
)  # fmt: skip
OF_THE_CODE = (
    "_name_or_path", "auto_map", "emb_pooler", "matryoshka_dimensions", "position_embedding_type",
    "rotary_emb_base", "truncate_dim", "use_flash_attn", "use_reentrant",
)  # fmt: skip


def _native(config: Mapping[str, Any], shape: EncoderConfig) -> dict[str, Any]:
    """The original's `config.json` as transformers writes it, without adapters."""
    # Of another size of heads the original knows nothing.
    gone = (*OF_ADAPTERS, *OF_THE_CODE, *(() if shape.head_size else ("head_dim",)))
    if shape.rotary is None:  # of a table transformers' class knows nothing
        return {key: value for key, value in config.items() if key not in OF_ADAPTERS}
    return {key: value for key, value in config.items() if key not in gone} | {
        "model_type": "jina_embeddings_v3",
        "architectures": ["JinaEmbeddingsV3Model"],
        "rope_parameters": {"rope_theta": shape.rotary.theta, "rope_type": "default"},
    }


def _rotary(config: ConfigFile) -> Rotary:
    """One base; the original code and transformers spell it apart, with defaults of their own."""
    parameters = config.section("rope_parameters")
    why = "pyenc serves jina-embeddings-v3 without it"
    require_unscaled(config, why)
    config.require("partial_rotary_factor", (None, 1.0), None, why)
    if strange := sorted(parameters.values.keys() - {"rope_theta", "rope_type", "type"}):
        raise CheckpointError(
            f"{parameters.path}: {', '.join(strange)} is not served; served: rope_theta with "
            'rope_type "default"'
        )
    kind = parameters.spelled("rope_type", "type")
    parameters.require(kind, ("default",), "default", "pyenc turns jina-embeddings-v3 by one base")
    place = parameters if "rope_theta" in parameters.values else config
    keys = {"rotary_emb_base": config, "rope_theta": place}
    if config.values.get("model_type") is None and all(
        where.values.get(key) is None for key, where in keys.items()
    ):
        raise CheckpointError(
            f"{config.path}: rope_theta is missing, and model_type, which tells what it then is: "
            '20000 with model_type "jina_embeddings_v3", 10000 with "xlm-roberta"'
        )
    key, default = ("rotary_emb_base", 10_000.0) if original(config) else ("rope_theta", 20_000.0)
    theta = keys.pop(key).positive(key, default)
    for other, where in keys.items():
        if where.values.get(other) not in (None, theta):
            raise CheckpointError(
                f"{where.path}: {other} is {where.values[other]!r}, but {key}, which counts for "
                f"model_type {config.values.get('model_type')!r}, is {theta!r}"
            )
    return Rotary(theta)


def _check_original(config: ConfigFile) -> None:
    why = "pyenc serves the original code's XLM-RoBERTa with rotary positions, or with a table"
    config.require("position_embedding_type", ("rotary", "absolute"), None, why)
    for key, value in NOT_SERVED.items():
        config.require(key, (value, None), value, "pyenc serves jina-embeddings-v3 without it")
    config.require("emb_pooler", (None, "mean"), None, "pyenc takes the mean of its tokens")
    whole = config.size("hidden_size") // config.size("num_attention_heads")
    config.require("rotary_emb_dim", (whole, None), None, "pyenc turns whole heads")
    if "layer_norm_eps" not in config.values:
        raise CheckpointError(
            f"{config.path}: layer_norm_eps is missing: 1e-05 or 1e-12, by the copy of the "
            "original code"
        )


def _config(config: ConfigFile, names: Names) -> EncoderConfig:
    head_size = None
    if original(config):
        _check_original(config)
    else:
        rotary = "jina-embeddings-v3 has rotary positions"
        config.require("position_embedding_type", ("rotary", None), "rotary", rotary)
        head_size = own_head_size(config)
    fields = common_fields(config, names)
    fields["type_vocab_size"] = config.integer("type_vocab_size", 1)
    fields["norm_eps"] = config.number("layer_norm_eps", 1e-5)
    fields["activation"] = config.activation()
    fields["attention_dropout"] = config.number("attention_probs_dropout_prob", 0.1)
    if has_table(config):
        rows = config.size("max_position_embeddings")
        shape = EncoderConfig(**fields, position="absolute", num_positions=rows, max_length=rows)
        return counted(shape, config, config.integer("pad_token_id", 1))
    return EncoderConfig(
        **fields,
        head_size=head_size,
        position="rotary",
        max_length=config.size("max_position_embeddings", 8194),
        rotary=_rotary(config),
    )


IN_FILES = LayerNames(
    "emb_ln", "encoder.layers", ("mixer.Wqkv",), "mixer.out_proj", "norm1", "norm2", ("mlp.fc1",),
    "mlp.fc2",
)  # fmt: skip
OURS_IN_MEMORY = replace(IN_MEMORY, up=IN_FILES.up, down=IN_FILES.down)


def _parts(config: EncoderConfig, names: Names) -> Parts:
    said = called(names, IN_FILES, OURS_IN_MEMORY)
    parts: Parts = {"embeddings.word.weight": ("embeddings.word_embeddings.weight",)}
    if config.type_vocab_size:
        parts["embeddings.token_type.weight"] = ("embeddings.token_type_embeddings.weight",)
    if config.position == "absolute":
        parts["embeddings.position.weight"] = ("embeddings.position_embeddings.weight",)
    parts |= both("embeddings.norm", said.embedding_norm)
    if config.pooler:
        parts |= both("pooler", "pooler.dense")
    for i in range(config.num_layers):
        parts |= said.qkv_of(i) | said.out_of(i) | said.feed_forward_of(i) | said.norms_of(i)
    return parts


def _head(config: ConfigFile, names: Names) -> HeadNames:
    eps = config.number("layer_norm_eps", 1e-5)
    return replace(roberta_head(config, names), config=HeadConfig(activation="gelu", norm_eps=eps))


FAMILY = Family(
    name="jina-embeddings-v3",
    checkpoints=(
        Published(
            "jina-embeddings-v3",
            "golden",
            "8,192 by its files; rotary positions have no table",
            'adapters by task="retrieval.query" and so on, merged as the formula says',
        ),
        Published(
            "jina-embeddings-v3-hf (model_type jina_embeddings_v3)",
            "golden",
            "8,192 by its files",
            "without its adapters",
        ),
        Published(
            "jina-reranker-v2-base-multilingual",
            "unverified",
            "1,024 (position table)",
            "a reranker: CrossEncoder after pyenc.register(); layers and classifier held against "
            "transformers' XLM-RoBERTa under other names, its weights not seen",
        ),
    ),
    signature=("encoder.layers.0.mixer.Wqkv.weight", "emb_ln.weight"),
    other_signature=("layers.0.mlp.fc1.weight", "layers.0.post_mlp_layernorm.weight"),
    config=_config,
    parts=_parts,
    head=_head,
    classifier=DENSE,
    model_types=("jina_embeddings_v3", ORIGINAL),
    prefixes=("", "roberta.", "model.", "model.roberta."),
    without_adapters=_native,
    tied={"lm_head.decoder.weight": "embeddings.word.weight"},
    layer=r"(?:encoder\.)?layers\.(\d+)\.",
)
