"""nomic-bert: nomic-embed-text-v1 and -v1.5, snowflake-arctic-embed-m-long, CodeRankEmbed.

Nussbaum et al., arXiv 2402.01613. Post-norm without biases, rotary positions, SwiGLU. Files spell
their settings as GPT-2 does, as transformers 5 does, or both ways.
"""

from __future__ import annotations

from ...errors import CheckpointError
from ..config import EncoderConfig, HeadConfig
from ..rotary import Rotary
from .family import ConfigFile, Family, HeadNames, Names, Parts, Published, both, weights

NOT_SERVED = {
    "prenorm": False, "causal": False, "parallel_block": False, "use_rms_norm": False,
    "qkv_proj_bias": False, "mlp_fc1_bias": False, "mlp_fc2_bias": False, "norm_mlp": False,
    "rotary_emb_interleaved": False, "rotary_emb_scale_base": None, "rotary_head_dim": False,
    "num_experts": 0, "moe_every_n_layers": 0,
}  # fmt: skip


def _rotary(config: ConfigFile) -> Rotary:
    parameters = config.section("rope_parameters")
    base = config.values.get("rotary_emb_base")
    if "rope_theta" in parameters.values or config.values.get("rope_theta") is not None:
        place = parameters if "rope_theta" in parameters.values else config
        theta = place.number("rope_theta", 1000.0)
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
    else:
        theta = config.number("rotary_emb_base", 1000.0)
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
    config.require("rope_scaling", (None,), None, "nomic-bert says it as rotary_scaling_factor")
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


def _intermediate(config: ConfigFile, hidden: int) -> int:
    if config.values.get("n_inner") is None and config.values.get("intermediate_size") is not None:
        return config.integer("intermediate_size")
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


def _norm_eps(config: ConfigFile) -> float:
    key = config.spelled("layer_norm_eps", "layer_norm_epsilon")
    return config.number(key, 1e-5 if config.values.get("n_embd") is not None else 1e-12)


def _config(config: ConfigFile, names: Names) -> EncoderConfig:
    for key, value in NOT_SERVED.items():
        config.require(key, (value, None), value, "pyenc serves nomic-bert without it")
    gpt2 = config.values.get("n_embd") is not None
    config.require("rotary_emb_fraction", (1.0,), 0.0 if gpt2 else 1.0, "pyenc turns whole heads")
    # One thing by two names, so no two spellings that must be equal.
    for key in ("activation_function", "hidden_act"):
        config.require(key, ("swiglu", "silu"), "silu", "pyenc serves nomic-bert's SwiGLU")
    hidden = config.integer(config.spelled("hidden_size", "n_embd"), 768)
    dropout = config.number(config.spelled("resid_pdrop", "hidden_dropout_prob"), 0.0)
    length = "max_trained_positions"
    if config.values.get(length) is None:
        length = "max_position_embeddings"
    return EncoderConfig(
        vocab_size=config.integer("vocab_size", 30528),
        hidden_size=hidden,
        num_layers=config.integer(config.spelled("num_hidden_layers", "n_layer"), 12),
        num_heads=config.integer(config.spelled("num_attention_heads", "n_head"), 12),
        intermediate_size=_intermediate(config, hidden),
        position="rotary",
        max_length=config.integer(length, 2048),
        rotary=_rotary(config),
        type_vocab_size=config.integer("type_vocab_size", 2),
        activation="silu",
        gated=True,
        gate_first=False,
        qkv_bias=False,
        out_bias=False,
        up_bias=False,
        down_bias=False,
        norm_eps=_norm_eps(config),
        pooler="pooler.dense.weight" in names,
        hidden_dropout=dropout,
        attention_dropout=config.number(
            config.spelled("attn_pdrop", "attention_probs_dropout_prob"), 0.0
        ),
        embedding_dropout=config.number("embd_pdrop", 0.0) if gpt2 else dropout,
        feed_forward_dropout="outer",
    )


def _parts(config: EncoderConfig, names: Names) -> Parts:
    parts: Parts = {"embeddings.word.weight": ("embeddings.word_embeddings.weight",)}
    if config.type_vocab_size:
        parts["embeddings.token_type.weight"] = ("embeddings.token_type_embeddings.weight",)
    parts |= both("embeddings.norm", "emb_ln")
    if config.pooler:
        parts |= both("pooler", "pooler.dense")
    for i in range(config.num_layers):
        ours, theirs = f"layers.{i}", f"encoder.layers.{i}"
        parts |= weights(f"{ours}.attention.qkv", f"{theirs}.attn.Wqkv")
        parts |= weights(f"{ours}.attention.out", f"{theirs}.attn.out_proj")
        parts |= both(f"{ours}.attention_norm", f"{theirs}.norm1")
        parts |= weights(f"{ours}.feed_forward.up", f"{theirs}.mlp.fc11", f"{theirs}.mlp.fc12")
        parts |= weights(f"{ours}.feed_forward.down", f"{theirs}.mlp.fc2")
        parts |= both(f"{ours}.feed_forward_norm", f"{theirs}.norm2")
    return parts


def _head(config: ConfigFile, names: Names) -> HeadNames:
    # The published code gives these layers mlp_fc1_bias, which is false; transformers' has biases.
    dense = "cls.predictions.transform.dense"
    biases = ("cls.predictions.bias", "cls.predictions.decoder.bias")
    return HeadNames(
        HeadConfig(
            activation="silu",
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
    ),
    signature=("encoder.layers.0.attn.Wqkv.weight", "emb_ln.weight"),
    config=_config,
    parts=_parts,
    head=_head,
    model_types=("nomic_bert",),
    prefixes=("", "bert.", "nomic_bert.", "model.", "model.bert."),
    layer=r"encoder\.layers\.(\d+)\.",
    layers_key="n_layer",
)
