"""What a family's file says of its `config.json`: every spelling, and what is refused by name."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pyenc.errors import CheckpointError
from pyenc.loading import load_checkpoint
from pyenc.loading.files import read_json
from pyenc.models import Disentangled, EncoderConfig
from pyenc.models.families import FAMILIES, ConfigFile
from pyenc.models.rotary import Rotary
from tests.conftest import GOLDEN
from tests.loading.test_strict import copied
from tests.models import refused_configs, refused_language_models
from tests.models.refused_configs import (
    ALBERT,
    ALBERT_MLM,
    DEBERTA,
    ELECTRA,
    ELECTRA_BASE,
    EURO,
    GEMMA,
    JINA3,
    MODERN,
    NOMIC,
    ORIGINAL3,
    OWN_MLM,
)
from tests.models.refused_language_models import GTE_QWEN2, LLAMA, MISTRAL, QWEN3

FAMILY = {family.name: family for family in FAMILIES}


def shape_of(family: str, name: str, **changes: Any) -> EncoderConfig:
    """The encoder of a golden's config.json with changes; None takes a key away."""
    values = {**read_json(GOLDEN / name / "config.json"), **changes}
    values = {key: value for key, value in values.items() if value is not ...}
    return FAMILY[family].config(ConfigFile("config.json", values), frozenset())


@pytest.mark.parametrize(
    ("family", "name", "changes", "message"),
    refused_configs.REFUSED + refused_language_models.REFUSED,
)
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
    # The original code drops its embeddings by resid_pdrop, and reads no embd_pdrop.
    apart = shape_of("nomic-bert", NOMIC, resid_pdrop=0.2, embd_pdrop=0.1)
    assert (apart.hidden_dropout, apart.dropout_of("embedding_dropout")) == (0.2, 0.2)
    native |= {"resid_pdrop": ..., "embd_pdrop": ..., "hidden_dropout_prob": 0.2}
    one = shape_of("nomic-bert", NOMIC, **native, rope_theta=5.0)
    assert one.hidden_dropout == one.dropout_of("embedding_dropout") == 0.2


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
    whole = shape_of("ModernBERT", MODERN, layer_types=..., global_attn_every_n_layers=1)
    assert whole.local == (False,) * 5
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
    absolute: dict[str, Any] = {"position_embedding_type": "absolute"}
    table = shape_of("jina-embeddings-v3", ORIGINAL3, **absolute)
    assert (table.position, table.rotary, table.num_positions) == ("absolute", None, 322)
    assert (table.padding_id, table.max_length) == (1, 320)
    for key in ("pad_token_id", "model_type"):  # jina-reranker-v2's file has no model_type
        assert shape_of("jina-embeddings-v3", ORIGINAL3, **absolute, **{key: ...}) == table
    other = shape_of("jina-embeddings-v3", ORIGINAL3, **absolute, pad_token_id=4)
    assert (other.padding_id, other.max_length) == (4, 317)


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


def test_a_padding_id_of_minus_one() -> None:
    """No token's. A table of words counts it from its end, and positions begin at zero."""
    for name, golden in (("EuroBERT", EURO), ("Llama", "llama_encoder_like_h6")):
        found = shape_of(name, golden, pad_token_id=-1)
        assert found.padding_row == found.vocab_size - 1
    plain = shape_of("RoBERTa", "xlmr_e5_like_h2", pad_token_id=0)
    found = shape_of("RoBERTa", "xlmr_e5_like_h2", pad_token_id=-1)
    assert (found.padding_id, found.max_length) == (None, plain.max_length + 1)
    assert found.max_length == found.num_positions


def test_albert_order() -> None:
    """As the original divides: whole groups, one after the other."""
    assert shape_of("ALBERT", ALBERT).layer_order == (0,) * 5
    two = shape_of("ALBERT", ALBERT_MLM)
    assert (two.num_layers, two.depth) == (4, 10)
    assert two.layer_order == (0, 1) * 3 + (2, 3) * 2
    for depth in range(1, 40):
        for groups in range(1, depth + 1):
            said = {"num_hidden_layers": depth, "num_hidden_groups": groups}
            order = shape_of("ALBERT", ALBERT, **said).layer_order
            assert order == tuple(int(i / (depth / groups)) for i in range(depth))
    plain = shape_of("ALBERT", ALBERT, hidden_dropout_prob=0.25, attention_probs_dropout_prob=0.5)
    assert (plain.embedding_dropout, plain.output_dropout, plain.hidden_dropout) == (0.25, 0.25, 0)
    assert plain.attention_dropout == 0.5


def test_electra_widths() -> None:
    """A layer between tables and states where their widths differ; and what a file leaves open."""
    small = shape_of("ELECTRA", ELECTRA)
    assert (small.embedding_size, small.hidden_size, small.pooler) == (24, 64, False)
    assert (small.hidden_dropout, small.attention_dropout) == (0.1, 0.1)
    assert shape_of("ELECTRA", ELECTRA_BASE).embedding_size is None
    assert shape_of("ELECTRA", ELECTRA_BASE, embedding_size=...).embedding_size == 128
    sizes = {
        "vocab_size": ..., "embedding_size": ..., "hidden_size": ..., "num_hidden_layers": ...,
        "num_attention_heads": ..., "intermediate_size": ..., "max_position_embeddings": ...,
    }  # fmt: skip
    unsaid = shape_of("ELECTRA", ELECTRA, **sizes)
    assert (unsaid.embedding_size, unsaid.hidden_size, unsaid.num_layers) == (128, 256, 12)
    assert (unsaid.num_heads, unsaid.intermediate_size, unsaid.num_positions) == (4, 1024, 512)
    assert unsaid.vocab_size == 30_522


def test_deberta_spellings() -> None:
    """Distances by number or by bucket, terms in one string or as a list, and what a file leaves
    open."""
    plain = shape_of("DeBERTa", DEBERTA)
    kind = Disentangled(16, 16, 64, norm=True)
    assert (plain.disentangled, plain.max_length, plain.pooler) == (kind, 64, False)
    assert (plain.hidden_dropout, plain.attention_dropout) == (0.1, 0.1)
    for terms in (["p2c", "c2p"], "c2p | P2C", ["c2p", "p2c", "c2p"]):
        assert shape_of("DeBERTa", DEBERTA, pos_att_type=terms) == plain
    for norm in ("LAYER_NORM", "none | layer_norm"):
        assert shape_of("DeBERTa", DEBERTA, norm_rel_ebd=norm) == plain
    for least in (0, -1, -7, ...):
        assert shape_of("DeBERTa", DEBERTA, max_relative_positions=least) == plain
    for none in (0, -1, -2, ...):
        found = shape_of("DeBERTa", DEBERTA, position_buckets=none)
        assert found.disentangled == Disentangled(64, norm=True)
    far = shape_of("DeBERTa", DEBERTA, max_relative_positions=500, conv_kernel_size=0)
    assert far.disentangled == replace(kind, max_distance=500)
    assert shape_of("DeBERTa", DEBERTA, embedding_size=64, attention_head_size=16) == plain
    one = shape_of("DeBERTa", OWN_MLM).disentangled
    assert one == Disentangled(24, position_to_content=False, shared=False)
    assert shape_of("DeBERTa", OWN_MLM, pos_att_type="p2c").disentangled == Disentangled(
        24, content_to_position=False, shared=False
    )
    unsaid = shape_of(
        "DeBERTa", DEBERTA, share_att_key=..., norm_rel_ebd=..., layer_norm_eps=...,
        type_vocab_size=..., max_position_embeddings=..., vocab_size=..., hidden_size=...,
        num_hidden_layers=..., num_attention_heads=..., intermediate_size=...,
    )  # fmt: skip
    assert unsaid.disentangled == Disentangled(16, 16, 512, shared=False)
    assert (unsaid.norm_eps, unsaid.type_vocab_size, unsaid.max_length) == (1e-7, 0, 512)
    assert (unsaid.hidden_size, unsaid.num_layers, unsaid.num_heads) == (1536, 24, 24)
    assert (unsaid.vocab_size, unsaid.intermediate_size) == (128_100, 6144)


def test_mistral_spellings() -> None:
    """Also of Llama, which has no windows."""
    old = shape_of("Mistral", MISTRAL)
    assert (old.local, old.window, old.causal) == ((True,) * 3, 11, True)
    assert shape_of("Mistral", MISTRAL, layer_types=["sliding_attention"] * 3) == old
    assert shape_of("Mistral", MISTRAL, sliding_window=...).window == 4095
    assert shape_of("Mistral", MISTRAL, sliding_window=1).window == 0
    free = shape_of("Mistral", MISTRAL, sliding_window=None)
    assert (free.local, free.window) == ((), None)
    kinds = ["full_attention"] * 3
    assert shape_of("Mistral", MISTRAL, sliding_window=None, layer_types=kinds) == free
    assert not shape_of("Mistral", MISTRAL, sliding_window=None, is_causal=False).causal
    assert shape_of("Mistral", MISTRAL, hidden_size=51).head_dim == 12  # as the class divides
    llama = shape_of("Llama", LLAMA)
    for family, name, base, same in (
        ("Mistral", MISTRAL, 1e4, old), ("Llama", LLAMA, 5e5, llama),
    ):  # fmt: skip
        assert same.rotary == Rotary(base)
        parameters = {"rope_type": "default", "rope_theta": base}
        assert shape_of(family, name, rope_parameters=parameters, rope_theta=...) == same
        assert shape_of(family, name, rope_theta=...).rotary == Rotary(10_000.0)
        assert shape_of(family, name, auto_map={"AutoConfig": "configuration_x.C"}) == same
    assert shape_of("Llama", LLAMA, num_key_value_heads=None).kv_heads == 6
    assert shape_of("Llama", LLAMA, pretraining_tp=4) == llama
    assert shape_of("Llama", LLAMA, layer_types=["full_attention"] * 3) == llama
    assert not shape_of("Llama", LLAMA, is_causal=False).causal


def test_qwen_spellings() -> None:
    old = shape_of("Qwen3", QWEN3)
    assert (old.rotary, old.causal, old.head_dim) == (Rotary(1_000_000.0), True, 16)
    assert (old.window, old.local, old.padding_row) == (None, (), None)
    parameters = {"rope_theta": 1_000_000, "rope_type": "default"}
    assert shape_of("Qwen3", QWEN3, rope_parameters=parameters, rope_theta=...) == old
    assert shape_of("Qwen3", QWEN3, rope_theta=...).rotary == Rotary(10_000.0)
    assert shape_of("Qwen3", QWEN3, layer_types=["full_attention"] * 3) == old
    # Without the switch the number is nobody's.
    assert shape_of("Qwen3", QWEN3, sliding_window=9, max_window_layers=0) == old
    windows = {"use_sliding_window": True, "sliding_window": 9, "max_window_layers": 1}
    some = shape_of("Qwen3", QWEN3, **windows)
    assert (some.window, some.local) == (8, (False, True, True))
    assert shape_of("Qwen3", QWEN3, **(windows | {"sliding_window": None})) == old
    assert shape_of("Qwen3", QWEN3, **(windows | {"max_window_layers": 3})) == old
    kinds = {"layer_types": ["sliding_attention", "full_attention", "full_attention"]}
    assert shape_of("Qwen3", QWEN3, **windows, **kinds).local == (True, False, False)
    assert not shape_of("Qwen3", QWEN3, is_causal=False).causal
    assert shape_of("Qwen3", QWEN3, auto_map={"AutoConfig": "configuration_qwen.C"}) == old


def test_gte_qwen2_spellings() -> None:
    """Its code is known by the names that `auto_map` has, copies of it too; config.json says which
    tokens are seen."""
    old = shape_of("Qwen2", GTE_QWEN2)
    assert (old.causal, old.window, old.local) == (False, None, ())
    assert (old.qkv_bias, old.out_bias, old.kv_heads) == (True, False, 2)
    alone = {"AutoModel": "modeling_qwen.Qwen2Model"}
    for named in (
        alone,
        {"AutoModel": "Alibaba-NLP/gte-Qwen2-1.5B-instruct--modeling_qwen.Qwen2Model"},
        alone | {"AutoModelForCausalLM": "modeling_qwen.Qwen2Model"},
        alone | {"AutoConfig": "configuration_x.C"},
        None,
    ):
        assert shape_of("Qwen2", GTE_QWEN2, auto_map=named) == old
    assert shape_of("Qwen2", GTE_QWEN2, is_causal=True) == replace(old, causal=True)
    # Transformers' own class sees no token after a token where nothing is said.
    assert shape_of("Qwen2", GTE_QWEN2, auto_map=..., is_causal=...).causal
    assert shape_of("Qwen2", GTE_QWEN2, use_sliding_window=...) == old


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
