"""What a family's file says of its `config.json`: every spelling, and what is refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pyenc.errors import CheckpointError
from pyenc.loading import load_checkpoint
from pyenc.loading.files import read_json
from pyenc.models import EncoderConfig
from pyenc.models.families import FAMILIES, ConfigFile
from pyenc.models.rotary import Rotary
from tests.conftest import GOLDEN
from tests.loading.test_strict import copied

FAMILY = {family.name: family for family in FAMILIES}


def shape_of(family: str, name: str, **changes: Any) -> EncoderConfig:
    """The encoder of a golden's config.json with changes; None takes a key away."""
    values = {**read_json(GOLDEN / name / "config.json"), **changes}
    values = {key: value for key, value in values.items() if value is not ...}
    return FAMILY[family].config(ConfigFile("config.json", values), frozenset())


GTE, NOMIC, MODERN = "gte_base_like_h4", "nomic_v1_like_h2", "modernbert_embed_like_h2"
GEMMA, EURO = "gemma_embed_like_h3", "eurobert_like_h4"
JINA3, ORIGINAL3 = "jinav3_hf_like_h4", "jinav3_lora_like_h2"

REFUSED: list[tuple[str, str, dict[str, Any], str]] = [
    ("GTE v1.5", GTE, {"rope_scaling": {"type": "yarn", "factor": 2.0}}, "rope_scaling: .*yarn"),
    ("GTE v1.5", GTE, {"rope_scaling": {"type": "ntk", "factor": 2.0, "mixed_b": 0.6}}, "mixed_b"),
    ("GTE v1.5", GTE, {"rope_scaling": {"type": "ntk", "factor": 0.5}}, "factor must be at least"),
    ("GTE v1.5", GTE, {"rope_scaling": {"type": "ntk"}}, "rope_scaling: factor is missing"),
    ("GTE v1.5", GTE, {"rope_scaling": 8}, "rope_scaling must be an object or null, got 8"),
    ("GTE v1.5", GTE, {"rope_parameters": {"rope_theta": 1.0}}, "two spellings"),
    ("GTE v1.5", GTE, {"layer_norm_type": "rms_norm"}, "layer_norm_type is 'rms_norm'"),
    ("GTE v1.5", GTE, {"position_embedding_type": "absolute"}, "position_embedding_type is"),
    ("GTE v1.5", GTE, {"logn_attention_scale": "true"}, "logn_attention_scale must be true or"),
    ("nomic-bert", NOMIC, {"rotary_emb_interleaved": True}, "rotary_emb_interleaved is True"),
    ("nomic-bert", NOMIC, {"rotary_emb_fraction": 0.5}, "rotary_emb_fraction is 0.5"),
    ("nomic-bert", NOMIC, {"rotary_emb_fraction": ...}, "rotary_emb_fraction is 0.0"),
    ("nomic-bert", NOMIC, {"rotary_emb_base": ...}, "rotary_emb_base is missing: 1000 or 10000"),
    ("nomic-bert", NOMIC, {"num_experts": 8}, "num_experts is 8"),
    ("nomic-bert", NOMIC, {"prenorm": True}, "prenorm is True"),
    ("nomic-bert", NOMIC, {"activation_function": "geglu"}, "activation_function is 'geglu'"),
    ("nomic-bert", NOMIC, {"hidden_size": 64}, "hidden_size is 64 and n_embd is 32"),
    ("nomic-bert", NOMIC, {"rope_parameters": {"rope_theta": 10000.0}}, "two spellings"),
    ("nomic-bert", NOMIC, {"rope_theta": 10000.0}, "rotary_emb_base is 1000, but rope_theta in"),
    ("nomic-bert", NOMIC, {"rope_parameters": {"rope_type": "dynamic"}}, "factor is missing"),
    ("nomic-bert", NOMIC, {"rope_parameters": {"type": "yarn"}}, "rope_type 'yarn' is not served"),
    (
        "nomic-bert",
        NOMIC,
        {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0}, "rotary_scaling_factor": 4.0},
        "rotary_scaling_factor is 4.0, but factor in",
    ),
    (
        "nomic-bert",
        NOMIC,
        {"rope_parameters": {"partial_rotary_factor": 0.5}},
        "partial_rotary_factor of rope_type 'default' is not served",
    ),
    ("nomic-bert", NOMIC, {"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "rope_scaling is"),
    ("nomic-bert", NOMIC, {"rotary_head_dim": True}, "rotary_head_dim is True"),
    (
        "nomic-bert",
        NOMIC,
        {"rotary_scaling_factor": 2.0, "max_position_embeddings": 8192},
        "max_trained_positions is 2048 and max_position_embeddings is 8192",
    ),
    ("nomic-bert", NOMIC, {"intermediate_size": 300}, "intermediate_size is 300, but n_inner"),
    ("ModernBERT", MODERN, {"layer_types": ["full_attention"] * 4}, "a list of 5 layers, got 4"),
    (
        "ModernBERT",
        MODERN,
        {"layer_types": ["full_attention"] * 4 + ["linear_attention"]},
        r"layer_types\[4\] 'linear_attention' is unknown; known: full_attention",
    ),
    ("ModernBERT", MODERN, {"global_attn_every_n_layers": 0}, "must be at least 1, got 0"),
    ("ModernBERT", MODERN, {"global_rope_theta": None}, "global_rope_theta is null"),
    ("ModernBERT", MODERN, {"rope_parameters": {"rope_theta": 9.0}}, "rope_theta is unknown; Mod"),
    ("ModernBERT", MODERN, {"sliding_window": 20}, "sliding_window is 20, but local_attention"),
    (
        "ModernBERT",
        MODERN,
        {"rope_parameters": {"full_attention": {"rope_type": "yarn", "factor": 4.0}}},
        "rope_parameters: full_attention: .*yarn",
    ),
    ("Gemma", GEMMA, {"use_bidirectional_attention": False}, "pyenc serves Gemma as an encoder"),
    ("Gemma", GEMMA, {"use_bidirectional_attention": ...}, "use_bidirectional_attention is False"),
    ("Gemma", GEMMA, {"attn_logit_softcapping": 50.0}, "attn_logit_softcapping is 50.0"),
    ("Gemma", GEMMA, {"rope_scaling": {"rope_type": "linear", "factor": 8.0}}, "rope_scaling is"),
    ("Gemma", GEMMA, {"layer_types": ["full_attention"] * 3}, "a list of 4 layers, got 3"),
    ("Gemma", GEMMA, {"layer_types": ..., "sliding_window_pattern": 0}, "must be at least 1, got"),
    ("Gemma", GEMMA, {"rope_local_base_freq": None}, "rope_local_base_freq is null; expected"),
    ("Gemma", GEMMA, {"rope_parameters": {"rope_theta": 9.0}}, "rope_theta is unknown; Gemma has"),
    ("Gemma", GEMMA, {"num_key_value_heads": 2}, "num_heads 3 must be a multiple of num_kv_heads"),
    ("Gemma", GEMMA, {"query_pre_attn_scalar": 0}, "query_pre_attn_scalar must be positive"),
    ("Gemma", GEMMA, {"hidden_activation": "gelu_10"}, "hidden_activation 'gelu_10' is unknown"),
    ("Gemma", GEMMA, {"model_type": "gemma2"}, "model_type"),
    ("EuroBERT", EURO, {"model_type": "llama"}, "model_type 'llama', .*EuroBERT"),
    ("EuroBERT", EURO, {"model_type": ...}, "unknown architecture: model_type None"),
    ("EuroBERT", EURO, {"rope_theta": ...}, "rope_theta is missing: 250000 in the original code"),
    ("EuroBERT", EURO, {"rope_theta": None}, "rope_theta is missing"),
    ("EuroBERT", EURO, {"rope_theta": 0}, "rope_theta must be positive, got 0"),
    ("EuroBERT", EURO, {"rope_theta": "1e4"}, "rope_theta must be a number, .* got '1e4'"),
    ("EuroBERT", EURO, {"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_scaling: .*line"),
    ("EuroBERT", EURO, {"rope_scaling": 2.0}, "rope_scaling must be an object or null, got 2.0"),
    (
        "EuroBERT",
        EURO,
        {"rope_parameters": {"rope_type": "yarn", "factor": 4.0, "rope_theta": 250000}},
        "rope_parameters: .*yarn.* is not served; served: rope_theta with",
    ),
    ("EuroBERT", EURO, {"rope_parameters": {"factor": 2.0}}, "rope_parameters: .*factor"),
    ("EuroBERT", EURO, {"rope_parameters": {"rope_theta": 9.0}}, "rope_theta is 250000, and 9.0"),
    (
        "EuroBERT",
        EURO,
        {"rope_parameters": {"rope_type": "default"}, "rope_scaling": {"type": "default"}},
        "rope_parameters is .* and rope_scaling is .*, two spellings",
    ),
    ("EuroBERT", EURO, {"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5"),
    (
        "EuroBERT",
        EURO,
        {"rope_parameters": {"partial_rotary_factor": 0.5}},
        "partial_rotary_factor': 0.5} is not served",
    ),
    ("EuroBERT", EURO, {"num_key_value_heads": 3}, "num_heads 4 must be a multiple of num_kv_head"),
    ("EuroBERT", EURO, {"num_key_value_heads": 0}, "num_heads 4 must be a multiple of num_kv_head"),
    ("EuroBERT", EURO, {"head_dim": 11}, "rotary needs even heads, not 11"),
    ("EuroBERT", EURO, {"head_dim": "12"}, "head_dim must be a whole number"),
    ("EuroBERT", EURO, {"head_dim": 0}, "head_size must be positive: 0"),
    ("EuroBERT", EURO, {"hidden_size": 50, "head_dim": None}, "hidden_size 50 is not a multiple"),
    ("EuroBERT", EURO, {"hidden_act": "quick_gelu"}, "hidden_act 'quick_gelu' is unknown"),
    ("EuroBERT", EURO, {"attention_bias": 1}, "attention_bias must be true or false, got 1"),
    ("EuroBERT", EURO, {"attention_bias": True}, "missing tensor 'model.layers.0.self_attn.q_pro"),
    ("EuroBERT", EURO, {"mlp_bias": "no"}, "mlp_bias must be true or false, got 'no'"),
    ("EuroBERT", EURO, {"mlp_bias": True}, "missing tensor 'model.layers.0.mlp.gate_proj.bias'"),
    ("EuroBERT", EURO, {"pad_token_id": 384}, "pad_token_id must be null or one of the 384"),
    ("EuroBERT", EURO, {"pad_token_id": ...}, "pad_token_id must be null or .*, got 128001"),
    ("EuroBERT", EURO, {"pad_token_id": -1}, "pad_token_id must be a whole number"),
    ("EuroBERT", EURO, {"rms_norm_eps": None}, "rms_norm_eps must be a number"),
    ("EuroBERT", EURO, {"attention_dropout": 1.0}, "attention_dropout must be in"),
    ("EuroBERT", EURO, {"max_position_embeddings": 0}, "max_length must be positive"),
    ("jina-embeddings-v3", JINA3, {"position_embedding_type": "absolute"}, "has rotary positions"),
    ("jina-embeddings-v3", JINA3, {"rope_scaling": {"type": "ntk"}}, "rope_scaling is"),
    ("jina-embeddings-v3", JINA3, {"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5"),
    ("jina-embeddings-v3", JINA3, {"rope_parameters": {"rope_type": "yarn"}}, "rope_type is 'yarn"),
    ("jina-embeddings-v3", JINA3, {"rope_parameters": {"factor": 2.0}}, "factor is not served"),
    ("jina-embeddings-v3", JINA3, {"rotary_emb_base": 10_000}, "rotary_emb_base is 10000, but"),
    (
        "jina-embeddings-v3",
        JINA3,
        {"rope_parameters": None, "rotary_emb_base": 5},
        "but rope_theta",
    ),
    ("jina-embeddings-v3", JINA3, {"hidden_act": "mish"}, "hidden_act 'mish' is unknown"),
    ("jina-embeddings-v3", JINA3, {"head_dim": 15}, "rotary needs even heads, not 15"),
    ("jina-embeddings-v3", JINA3, {"model_type": "roberta"}, "model_type is 'roberta'"),
    ("jina-embeddings-v3", ORIGINAL3, {"position_embedding_type": ...}, "rotary positions alone"),
    ("jina-embeddings-v3", ORIGINAL3, {"position_embedding_type": "alibi"}, "positions alone"),
    ("jina-embeddings-v3", ORIGINAL3, {"emb_pooler": "cls"}, "emb_pooler is 'cls'"),
    ("jina-embeddings-v3", ORIGINAL3, {"truncate_dim": 24}, "truncate_dim is 24"),
    ("jina-embeddings-v3", ORIGINAL3, {"layer_norm_eps": ...}, "layer_norm_eps is missing: 1e-05"),
    (
        "jina-embeddings-v3",
        ORIGINAL3,
        {"rotary_emb_interleaved": True},
        "rotary_emb_interleaved is",
    ),
    ("jina-embeddings-v3", ORIGINAL3, {"rotary_emb_scale_base": 512}, "rotary_emb_scale_base is"),
    ("jina-embeddings-v3", ORIGINAL3, {"rotary_emb_dim": 12}, "rotary_emb_dim is 12"),
    ("jina-embeddings-v3", ORIGINAL3, {"last_layer_subset": True}, "last_layer_subset is True"),
    ("jina-embeddings-v3", ORIGINAL3, {"pad_vocab_size_multiple": 8}, "pad_vocab_size_multiple is"),
    (
        "jina-embeddings-v3",
        ORIGINAL3,
        {"rope_theta": 5.0},
        "rope_theta is 5.0, but rotary_emb_base",
    ),
    ("MPNet", "mpnet_base_v2_like_h4", {"relative_attention_num_buckets": 16}, "num_buckets is 16"),
    ("RoBERTa", "xlmr_e5_like_h2", {"pad_token_id": None}, "pad_token_id is null, but positions"),
    ("RoBERTa", "xlmr_e5_like_h2", {"max_position_embeddings": 2}, "leaves no position after"),
    (
        "T5",
        "t5_mean_relu_h4",
        {"feed_forward_proj": "gated-mish"},
        "feed_forward_proj 'gated-mish'",
    ),
    ("T5", "t5_mean_relu_h4", {"feed_forward_proj": "odd-relu"}, "feed_forward_proj 'odd-relu'"),
    ("T5", "t5_mean_relu_h4", {"dense_act_fn": "mish"}, "dense_act_fn 'mish' is unknown"),
    ("T5", "t5_mean_relu_h4", {"num_attention_heads": 8}, "num_heads is 4 and num_attention_heads"),
    ("DistilBERT", "distilbert_h4", {"hidden_size": 8}, "and hidden_size is 8"),
    ("T5", "t5_mean_relu_h4", {"relative_attention_num_buckets": 30}, "a multiple of 4"),
]


@pytest.mark.parametrize(("family", "name", "changes", "message"), REFUSED)
def test_refused(
    family: str, name: str, changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    folder = copied(name, tmp_path)
    values = {**read_json(folder / "config.json"), **changes}
    kept = {key: value for key, value in values.items() if value is not ...}
    (folder / "config.json").write_text(json.dumps(kept))
    with pytest.raises(CheckpointError, match=message) as caught:
        load_checkpoint(folder)
    assert "config.json" in str(caught.value)


def test_gte_scaling() -> None:
    assert shape_of("GTE v1.5", GTE).rotary == Rotary(500_000.0, factor=2.0)
    plain = shape_of("GTE v1.5", GTE, rope_scaling=None)
    assert plain.rotary == Rotary(500_000.0)
    native = {"rope_scaling": ..., "rope_theta": ..., "model_type": "gte"}
    assert shape_of("GTE v1.5", GTE, **native).rotary == Rotary(160_000.0)
    native["rope_parameters"] = {"rope_theta": 500_000, "rope_type": "default"}
    assert shape_of("GTE v1.5", GTE, **native) == plain
    scaled = shape_of("GTE v1.5", GTE, logn_attention_scale=True, logn_attention_clip1=True)
    assert (scaled.log_length, scaled.log_length_at_least_one) == (64, True)


def test_nomic_spellings() -> None:
    theirs = shape_of("nomic-bert", NOMIC)
    native = {
        "n_embd": ..., "n_head": ..., "n_layer": ..., "n_inner": ..., "layer_norm_epsilon": ...,
        "rotary_emb_base": ..., "rotary_emb_fraction": ..., "activation_function": ...,
        "max_trained_positions": ..., "hidden_size": 32, "num_attention_heads": 2,
        "num_hidden_layers": 2, "intermediate_size": 256, "layer_norm_eps": 1e-12,
        "hidden_act": "silu", "max_position_embeddings": 2048,
        "rope_parameters": {"rope_theta": 1000.0, "rope_type": "default"},
    }  # fmt: skip
    assert shape_of("nomic-bert", NOMIC, **native) == theirs
    both = {key: value for key, value in native.items() if value is not ...}
    assert shape_of("nomic-bert", NOMIC, **both) == theirs
    native["rope_parameters"] = {"rope_theta": 1000.0, "rope_type": "dynamic", "factor": 2.0}
    dynamic = Rotary(1000.0, dynamic_factor=2.0, trained_length=2048)
    assert shape_of("nomic-bert", NOMIC, **native).rotary == dynamic
    assert shape_of("nomic-bert", NOMIC, rotary_scaling_factor=2).rotary == dynamic
    # Without scaling nothing depends on where it would begin.
    assert shape_of("nomic-bert", NOMIC, max_position_embeddings=8192) == theirs
    # No experts, said as the code that has them says it.
    assert shape_of("nomic-bert", NOMIC, num_experts=0, moe_every_n_layers=0) == theirs
    native["rope_parameters"] = {"rope_type": "default"}
    assert shape_of("nomic-bert", NOMIC, **native, rope_theta=5.0).rotary == Rotary(5.0)
    # Rounded up to a multiple of 256 by the original code.
    assert shape_of("nomic-bert", NOMIC, n_inner=200).intermediate_size == 256
    assert shape_of("nomic-bert", NOMIC, n_inner=None, n_embd=768).intermediate_size == 2048
    apart = shape_of("nomic-bert", NOMIC, resid_pdrop=0.2, embd_pdrop=0.1)
    assert (apart.hidden_dropout, apart.embedding_dropout) == (0.2, 0.1)
    native |= {"resid_pdrop": ..., "embd_pdrop": ..., "hidden_dropout_prob": 0.2}
    one = shape_of("nomic-bert", NOMIC, **native, rope_theta=5.0)
    assert one.hidden_dropout == one.embedding_dropout == 0.2


def test_modernbert_spellings() -> None:
    old = shape_of("ModernBERT", MODERN)
    assert old.local == (False, True, False, True, False)
    assert (old.window, old.rotary, old.local_rotary) == (10, Rotary(80_000.0), Rotary(5_000.0))
    kinds = ["full_attention", "sliding_attention"] * 2 + ["full_attention"]
    new = {
        "layer_types": kinds,
        "rope_parameters": {
            "full_attention": {"rope_theta": 80_000.0, "rope_type": "default"},
            "sliding_attention": {"rope_theta": 5_000.0, "rope_type": "default"},
        },
        "global_rope_theta": ...,
        "local_rope_theta": ...,
    }
    assert shape_of("ModernBERT", MODERN, **new) == old
    # Both spellings: the newer one counts, and what it leaves open is the older one's.
    new |= {"global_rope_theta": 7.0, "local_rope_theta": 5_000.0}
    new["rope_parameters"] = {"full_attention": {"rope_theta": 80_000.0}}
    assert shape_of("ModernBERT", MODERN, **new) == old
    assert shape_of("ModernBERT", MODERN, local_rope_theta=None).local_rotary is None
    assert shape_of("ModernBERT", MODERN, local_attention=21).window == 10
    assert shape_of("ModernBERT", MODERN, sliding_window=10) == shape_of("ModernBERT", MODERN)
    assert shape_of("ModernBERT", MODERN, local_attention=..., sliding_window=7).window == 7


def test_jina_v3_spellings() -> None:
    shape = shape_of("jina-embeddings-v3", JINA3)
    assert (shape.rotary, shape.norm_eps, shape.head_size) == (Rotary(20_000.0), 1e-5, None)
    silent = {"rope_parameters": ..., "layer_norm_eps": ..., "type_vocab_size": ...}
    assert shape_of("jina-embeddings-v3", JINA3, **silent) == shape
    flat = {"rope_parameters": None, "rope_theta": 5.0}
    assert shape_of("jina-embeddings-v3", JINA3, **flat).rotary == Rotary(5.0)
    nested = {"rope_parameters": {"rope_theta": 7.0, "rope_type": "default"}, "rope_theta": 5.0}
    assert shape_of("jina-embeddings-v3", JINA3, **nested).rotary == Rotary(7.0)
    assert shape_of("jina-embeddings-v3", JINA3, head_dim=8).head_dim == 8
    original = shape_of("jina-embeddings-v3", ORIGINAL3)
    assert original.rotary == Rotary(20_000.0)
    unsaid = shape_of("jina-embeddings-v3", ORIGINAL3, rotary_emb_base=...)
    assert unsaid.rotary == Rotary(10_000.0)
    assert shape_of("jina-embeddings-v3", ORIGINAL3, rotary_emb_dim=24) == original


def test_gemma_spellings() -> None:
    old = shape_of("Gemma", GEMMA)
    assert old.local == (True, True, False, True)
    assert (old.window, old.scale, old.kv_heads) == (12, 24**-0.5, 1)
    new = {
        "rope_parameters": {
            "full_attention": {"rope_theta": 80_000.0, "rope_type": "default"},
            "sliding_attention": {"rope_theta": 500.0, "rope_type": "default"},
        },
        "rope_theta": ...,
        "rope_local_base_freq": ...,
        "rope_scaling": ...,
    }
    assert shape_of("Gemma", GEMMA, **new) == old
    # 24 and 25 keys are 12 on each side.
    assert shape_of("Gemma", GEMMA, sliding_window=24) == old
    listless = {"layer_types": ..., "num_hidden_layers": 7}
    assert shape_of("Gemma", GEMMA, **listless).local == (True,) * 5 + (False, True)
    third = shape_of("Gemma", GEMMA, **listless, sliding_window_pattern=3)
    assert third.local == (True, True, False) * 2 + (True,)
    whole = shape_of("Gemma", GEMMA, layer_types=["full_attention"] * 4)
    assert whole.window is None
    assert whole.local == (False,) * 4


def test_eurobert_spellings() -> None:
    old = shape_of("EuroBERT", EURO)
    assert (old.rotary, old.kv_heads, old.padding_row) == (Rotary(250_000.0), 2, 377)
    parameters = {"rope_theta": 250_000, "rope_type": "default"}
    for key in ("rope_parameters", "rope_scaling"):
        assert shape_of("EuroBERT", EURO, **{key: parameters}, rope_theta=...) == old
        assert shape_of("EuroBERT", EURO, **{key: parameters}) == old
        assert shape_of("EuroBERT", EURO, **{key: {"type": "default"}}) == old
    twice = {"rope_parameters": parameters, "rope_scaling": parameters}
    assert shape_of("EuroBERT", EURO, **twice, partial_rotary_factor=1.0) == old
    assert shape_of("EuroBERT", EURO, head_dim=None).head_dim == 12
    assert shape_of("EuroBERT", EURO, head_dim=...).head_dim == 12
    assert shape_of("EuroBERT", EURO, num_key_value_heads=None).kv_heads == 4
    assert shape_of("EuroBERT", EURO, num_key_value_heads=...).kv_heads == 4
    assert shape_of("EuroBERT", EURO, pad_token_id=None).padding_row is None


@pytest.mark.parametrize(
    ("said", "activation", "gated"),
    [
        ("relu", "relu", False),
        ("gated-gelu", "gelu_tanh", True),
        ("gated-silu", "silu", True),
        ("gelu_new", "gelu_tanh", False),
        ("gelu", "gelu", False),
    ],
)
def test_t5_feed_forward(said: str, activation: str, gated: bool) -> None:
    shape = shape_of("T5", "t5_mean_relu_h4", feed_forward_proj=said)
    assert (shape.activation, shape.gated) == (activation, gated)


def test_t5_feed_forward_said_again() -> None:
    """transformers reads `dense_act_fn` and `is_gated_act` after `feed_forward_proj`."""
    said = {"feed_forward_proj": "gated-gelu", "dense_act_fn": "gelu"}
    shape = shape_of("T5", "t5_mean_relu_h4", **said)
    assert (shape.activation, shape.gated) == ("gelu", True)
    said = {"feed_forward_proj": "gelu_new", "dense_act_fn": "gelu_new", "is_gated_act": True}
    shape = shape_of("T5", "t5_mean_relu_h4", **said)
    assert (shape.activation, shape.gated) == ("gelu_tanh", True)


@pytest.mark.parametrize(
    ("family", "name", "names"),
    [
        ("T5", "t5_mean_relu_h4", "d_model hidden_size"),
        ("T5", "t5_mean_relu_h4", "num_layers num_hidden_layers"),
        ("T5", "t5_mean_relu_h4", "num_heads num_attention_heads"),
        ("T5", "t5_mean_relu_h4", "d_kv head_dim"),
        ("DistilBERT", "distilbert_h4", "dim hidden_size"),
        ("DistilBERT", "distilbert_h4", "n_layers num_hidden_layers"),
        ("DistilBERT", "distilbert_h4", "n_heads num_attention_heads"),
    ],
)
def test_sizes_by_other_names(family: str, name: str, names: str) -> None:
    own, other = names.split()
    value = read_json(GOLDEN / name / "config.json")[own]
    assert shape_of(family, name, **{own: ..., other: value}) == shape_of(family, name)
