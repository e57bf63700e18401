"""EuroBERT: EuroBERT-210m, -610m, -2.1B, and sentence encoders made of them.

Boizard et al., arXiv 2503.05500. Llama's layers with attention to both sides: pre-norm with
RMSNorm, rotary positions, a gated feed-forward whose first rows are the gate, keys and values that
several heads may share. Its padding is the token that ends every text.
"""

from __future__ import annotations

from ...errors import CheckpointError
from ..config import EncoderConfig
from ..head_config import HeadConfig
from .config_file import ConfigFile, own_head_size
from .family import Family, HeadNames, Published
from .llama import LAYER, SIGNATURE, optional, padding, parts
from .parts import Names
from .rope import rotary

MODEL_TYPE = "eurobert"
UNSAID = "250000 in the original code, 10000 in transformers 5"


def _config(config: ConfigFile, names: Names) -> EncoderConfig:
    words = config.size("vocab_size", 128_256)
    hidden, heads = config.size("hidden_size", 768), config.size("num_attention_heads", 12)
    biased, mlp_biased = config.flag("attention_bias", False), config.flag("mlp_bias", False)
    return EncoderConfig(
        vocab_size=words,
        hidden_size=hidden,
        num_layers=config.size("num_hidden_layers", 12),
        num_heads=heads,
        num_kv_heads=optional(config, "num_key_value_heads"),
        head_size=own_head_size(config),
        intermediate_size=config.size("intermediate_size", 3072),
        position="rotary",
        max_length=config.size("max_position_embeddings", 8192),
        rotary=rotary(config, None, UNSAID),
        padding_row=padding(config, words, 128_001),
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
        Published(
            "jina-embeddings-v5-text-nano",
            "unverified",
            "by its files; rotary positions have no table",
            'adapters by task="retrieval" and so on, merged as by peft; layers verified on small '
            "checkpoints of EuroBERT's original code; its files not seen",
        ),
    ),
    signature=SIGNATURE,
    # Decoders of the same names (Llama's) see no token after their own.
    accepts=lambda config: config.values.get("model_type") == MODEL_TYPE,
    config=_config,
    parts=lambda config, names: parts(config),
    head=_head,
    model_types=(MODEL_TYPE,),
    prefixes=("", "model."),
    set_aside=("lm_head.", "dense.", "classifier."),
    tied={"lm_head.weight": "embeddings.word.weight"},
    layer=LAYER,
)
