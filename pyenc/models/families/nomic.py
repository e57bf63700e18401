"""nomic-bert: nomic-embed-text-v1, -v1.5 and -v2-moe, snowflake-arctic-embed-m-long, CodeRankEmbed.

Nussbaum et al., arXiv 2402.01613. Post-norm without biases, rotary positions, SwiGLU. Files spell
their settings as GPT-2 does, as transformers 5 does, or both ways.

v2-moe (Nussbaum and Duderstadt, arXiv 2502.07972) has XLM-RoBERTa's words, biases, and plain GELU;
every second layer's feed-forward is a mixture of experts as MegaBlocks' `dMoE` has it.
"""

from __future__ import annotations

from dataclasses import replace

from ...errors import CheckpointError
from ..config import EncoderConfig
from ..experts import Experts
from ..head_config import HeadConfig
from ..rotary import Rotary
from .config_file import ConfigFile, own_head_size, require_unscaled
from .family import Family, HeadNames, Published
from .in_memory import SIGNATURE, LayerNames, called
from .parts import Names, Parts, both, there, weights

NOT_SERVED = {
    "prenorm": False, "causal": False, "parallel_block": False, "use_rms_norm": False,
    "norm_mlp": False, "rotary_emb_interleaved": False, "rotary_emb_scale_base": None,
    "rotary_head_dim": False,
}  # fmt: skip

NOT_SERVED_OF_EXPERTS = {
    "moe_impl": "megablocks", "expert_choice_router": False, "num_shared_experts": 0, "ffn_div": 1,
    "moe_capacity_factor": 0, "moe_jitter_eps": 0, "uniform_expert_assignment": False,
}  # fmt: skip
"""What the code that trains them has beside; the first of `moe_impl` has these tensors' names."""

MOST_LAYERS = 4096


def _rotary(config: ConfigFile) -> Rotary:
    parameters = config.section("rope_parameters")
    base = config.values.get("rotary_emb_base")
    if "rope_theta" in parameters.values or config.values.get("rope_theta") is not None:
        place = parameters if "rope_theta" in parameters.values else config
        theta = place.positive("rope_theta", 1000.0)
        if base is not None and base != theta:
            raise CheckpointError(
                f"{config.path}: rotary_emb_base is {base!r}, but rope_theta in {place.path} is "
                f"{theta!r}, two spellings of one setting"
            )
    elif base is None and "n_embd" in config.values:
        raise CheckpointError(
            f"{config.path}: rotary_emb_base is missing: 1000 or 10000, by the copy of the "
            "original code"
        )
    elif base is not None and base != 1000.0 and "n_embd" not in config.values:
        raise CheckpointError(
            f"{config.path}: rotary_emb_base is {base!r}, which transformers' class passes over in "
            "a file of its own spelling for 1000; expected rope_theta, or n_embd and the other "
            "keys of the original code"
        )
    else:
        theta = config.positive("rotary_emb_base", 1000.0)
    kind = parameters.text(parameters.spelled("rope_type", "type"), "default")
    if kind not in ("default", "dynamic"):
        raise CheckpointError(
            f"{parameters.path}: rope_type {kind!r} is not served; served: default, dynamic"
        )
    dynamic = kind == "dynamic"
    known = {"rope_theta", "rope_type", "type"} | ({"factor"} if dynamic else set())
    if strange := sorted(parameters.values.keys() - known):
        raise CheckpointError(
            f"{parameters.path}: {', '.join(strange)} of rope_type {kind!r} is not served; served: "
            'rope_theta, and factor with rope_type "dynamic"'
        )
    require_unscaled(config, "nomic-bert says it as rotary_scaling_factor")
    factor = config.values.get("rotary_scaling_factor")
    if not dynamic:
        if factor is None:
            return Rotary(theta)
        factor = config.number("rotary_scaling_factor", 1.0)
        return Rotary(theta, dynamic_factor=factor, trained_length=_trained(config))
    if "factor" not in parameters.values:
        raise CheckpointError(
            f'{parameters.path}: factor is missing; rope_type "dynamic" needs one'
        )
    if factor not in (None, parameters.values["factor"]):
        raise CheckpointError(
            f"{config.path}: rotary_scaling_factor is {factor!r}, but factor in {parameters.path} "
            f"is {parameters.values['factor']!r}, two spellings of one setting"
        )
    factor = parameters.number("factor", 1.0)
    return Rotary(theta, dynamic_factor=factor, trained_length=_trained(config))


def _trained(config: ConfigFile) -> int:
    """Where dynamic scaling begins: nothing else depends on it, and only here the two are one."""
    return config.integer(config.spelled("max_trained_positions", "max_position_embeddings"), 2048)


def _experts(config: ConfigFile, layers: int, plain: bool) -> Experts | None:
    said = {key: config.values.get(key) for key in ("num_experts", "moe_every_n_layers")}
    count, every = (0 if said[key] is None else config.integer(key) for key in said)
    if not count and not every:
        return None
    if not count or not 2 <= every <= layers <= MOST_LAYERS:
        words = " and ".join(f"{key} is {value!r}" for key, value in said.items())
        raise CheckpointError(
            f"{config.path}: {words}, of {layers} layers; expected neither, or experts in one of "
            f"every 2 layers or more, of {MOST_LAYERS:,} layers at the most"
        )
    if not plain:
        raise CheckpointError(
            f"{config.path}: num_experts is {count}, but activation_function is "
            f"{config.values.get('activation_function')!r}; pyenc serves nomic-bert's experts "
            'without gates (expected "gelu")'
        )
    for key, value in NOT_SERVED_OF_EXPERTS.items():
        config.require(key, (value, None), value, "pyenc serves nomic-bert's experts without it")
    dropout = config.values.get("resid_pdrop", 0.0)
    config.require("moe_resid_pdrop", (dropout, None), None, "pyenc drops alike in all layers")
    # There it is the order of the norm that they are divided by, of which true is the first.
    normalized = config.values.get("moe_normalize_expert_weights")
    config.require(
        "moe_normalize_expert_weights", (False, True, None), None,
        "pyenc leaves weights as they are or divides them by their sum",
    )  # fmt: skip
    return Experts(
        count=count,
        each=config.integer("moe_top_k"),
        # Not the first of so many: so the original code has it.
        layers=tuple(i % every == 1 for i in range(layers)),
        normalized=bool(normalized),
    )


def _intermediate(config: ConfigFile, hidden: int, plain: bool) -> int:
    if config.values.get("n_inner") is None and config.values.get("intermediate_size") is not None:
        return config.size("intermediate_size")
    if plain and config.values.get("n_inner") is None:
        return 4 * hidden
    if plain:
        return config.integer(config.spelled("n_inner", "intermediate_size"))
    # The original code rounds up to a multiple of 256.
    inner = int(8 * hidden / 3)
    if config.values.get("n_inner") is not None:
        inner = config.integer("n_inner")
    inner = -(-inner // 256) * 256
    said = config.values.get("intermediate_size", inner)
    if said not in (inner, config.values.get("n_inner")):
        raise CheckpointError(
            f"{config.path}: intermediate_size is {said!r}, but n_inner makes it {inner}"
        )
    return inner


def _biased(config: ConfigFile, key: str) -> bool:
    return config.values.get(key) is not None and config.flag(key, False)


def _norm_eps(config: ConfigFile) -> float:
    key = config.spelled("layer_norm_eps", "layer_norm_epsilon")
    return config.number(key, 1e-5 if config.values.get("n_embd") is not None else 1e-12)


def _config(config: ConfigFile, names: Names) -> EncoderConfig:
    for key, value in NOT_SERVED.items():
        config.require(key, (value, None), value, "pyenc serves nomic-bert without it")
    gpt2 = config.values.get("n_embd") is not None
    config.require("rotary_emb_fraction", (1.0,), 0.0 if gpt2 else 1.0, "pyenc turns whole heads")
    # Without a gate only as GPT-2 spells it: transformers' class has one for any activation.
    plain = config.values.get("activation_function") == "gelu"
    # One thing by two names, so no two spellings that must be equal.
    for key in ("activation_function", "hidden_act"):
        allowed = ("gelu",) if plain else ("swiglu", "silu")
        why = "pyenc serves nomic-bert's SwiGLU, and activation_function gelu"
        config.require(key, allowed, allowed[-1], why)
    hidden = config.size(config.spelled("hidden_size", "n_embd"), 768)
    dropout = config.number(config.spelled("resid_pdrop", "hidden_dropout_prob"), 0.0)
    layers = config.size(config.spelled("num_hidden_layers", "n_layer"), 12)
    biased = _biased(config, "qkv_proj_bias")
    length = "max_trained_positions"
    if config.values.get(length) is None:
        length = "max_position_embeddings"
    return EncoderConfig(
        vocab_size=config.size("vocab_size", 30528),
        hidden_size=hidden,
        num_layers=layers,
        num_heads=config.size(config.spelled("num_attention_heads", "n_head"), 12),
        head_size=own_head_size(config),
        intermediate_size=_intermediate(config, hidden, plain),
        position="rotary",
        max_length=config.size(length, 2048),
        rotary=_rotary(config),
        type_vocab_size=config.integer("type_vocab_size", 2),
        activation="gelu" if plain else "silu",
        gated=not plain,
        gate_first=False,
        experts=_experts(config, layers, plain),
        qkv_bias=biased,
        out_bias=biased,
        up_bias=_biased(config, "mlp_fc1_bias"),
        down_bias=_biased(config, "mlp_fc2_bias"),
        norm_eps=_norm_eps(config),
        pooler=there(names, "pooler.dense"),
        hidden_dropout=dropout,
        attention_dropout=config.number(
            config.spelled("attn_pdrop", "attention_probs_dropout_prob"), 0.0
        ),
        feed_forward_dropout="outer",
    )


IN_FILES = LayerNames(
    "emb_ln", "encoder.layers", ("attn.Wqkv",), "attn.out_proj", "norm1", "norm2",
    ("mlp.fc11", "mlp.fc12"), "mlp.fc2",
)  # fmt: skip


def _parts(config: EncoderConfig, names: Names) -> Parts:
    parts: Parts = {"embeddings.word.weight": ("embeddings.word_embeddings.weight",)}
    if config.type_vocab_size:
        parts["embeddings.token_type.weight"] = ("embeddings.token_type_embeddings.weight",)
    said = called(names, IN_FILES)
    if not config.gated:
        said = replace(said, up=("mlp.fc1",))
    up, down = (both if biased else weights for biased in (config.up_bias, config.down_bias))
    parts |= both("embeddings.norm", said.embedding_norm)
    if config.pooler:
        parts |= both("pooler", "pooler.dense")
    for i in range(config.num_layers):
        attention = both if config.qkv_bias else weights
        parts |= said.qkv_of(i, attention) | said.out_of(i, attention) | said.norms_of(i)
        if config.experts is not None and config.experts.layers[i]:
            parts |= _mixture(f"layers.{i}.feed_forward", f"{said.layer}.{i}.mlp")
        else:
            parts |= said.feed_forward_of(i, up, down)
    return parts


def _mixture(ours: str, theirs: str) -> Parts:
    """Of all experts, (E * F, C) both, and one bias for their sum."""
    return {
        f"{ours}.router": (f"{theirs}.router.layer.weight",),
        f"{ours}.up": (f"{theirs}.experts.mlp.w1",),
        f"{ours}.down": (f"{theirs}.experts.mlp.w2",),
        f"{ours}.bias": (f"{theirs}.experts.bias",),
    }


def _head(config: ConfigFile, names: Names) -> HeadNames:
    # The published code gives these layers mlp_fc1_bias, which is false; transformers' has biases.
    dense = "cls.predictions.transform.dense"
    biases = ("cls.predictions.bias", "cls.predictions.decoder.bias")
    return HeadNames(
        HeadConfig(
            activation="gelu" if config.values.get("activation_function") == "gelu" else "silu",
            norm_eps=_norm_eps(config),
            dense_bias=f"{dense}.bias" in names,
            bias=any(name in names for name in biases),
        ),
        dense=dense,
        norm="cls.predictions.transform.layer_norm",
        decoder="cls.predictions.decoder",
        biases=biases,
    )


FAMILY = Family(
    name="nomic-bert",
    checkpoints=(
        Published(
            "nomic-embed-text-v1, -v1.5",
            "golden",
            "8,192 by their files, 2,048 trained",
            "truncate_dim of v1.5 asks for layer_norm=True",
        ),
        Published(
            "snowflake-arctic-embed-m-long",
            "golden",
            "2,048 trained; beyond with rotary_scaling_factor",
            "NTK by each text's own length, not by its batch's width",
        ),
        Published("CodeRankEmbed", "unverified", "8,192 by its files"),
        Published(
            "nomic-embed-text-v2-moe",
            "unverified",
            "512 by its files, 2,048 trained",
            "its mixtures of experts held against the written-out formula; weights not seen",
        ),
    ),
    signature=("encoder.layers.0.attn.Wqkv.weight", "emb_ln.weight"),
    other_signature=SIGNATURE,
    # GTE's are called so in memory too, and told by a bias, which may be what is missing.
    accepts=lambda config: config.values.get("model_type") not in ("new", "gte"),
    config=_config,
    parts=_parts,
    head=_head,
    model_types=("nomic_bert",),
    prefixes=("", "bert.", "nomic_bert.", "model.", "model.bert."),
    layer=r"(?:encoder\.)?layers\.(\d+)\.",
    layers_key="n_layer",
)
