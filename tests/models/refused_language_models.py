"""The same of language models as of other families in refused_configs.py."""

from __future__ import annotations

from typing import Any

LLAMA, MISTRAL = "llama_encoder_like_h6", "mistral_e5_like_h4"
QWEN2, QWEN3 = "qwen2_code_like_h6", "qwen3_embed_like_h4"
GEMMA_1, GEMMA_2 = "gemma1_like_h2", "gemma2_bge_like_h4"
GTE_QWEN2 = "qwen2_gte_like_h4"
YARN: dict[str, Any] = {"rope_type": "yarn", "factor": 4.0}
TRAINED = "original_max_position_embeddings"
PPLX: dict[str, Any] = {"model_type": "bidirectional_pplx_qwen3"}
BOTH: dict[str, Any] = {"model_type": "llama_bidirec"}

REFUSED: list[tuple[str, str, dict[str, Any], str]] = [
    ("Qwen3", QWEN3, {"model_type": "qwen3_moe"}, "unknown architecture: model_type 'qwen3_moe'"),
    ("Qwen3", QWEN3, {"model_type": ...}, "unknown architecture: model_type None"),
    ("Qwen3", QWEN3, {"head_dim": None}, "head_dim must be a whole number"),
    ("Qwen3", QWEN3, {"head_dim": 15}, "rotary needs even heads, not 15"),
    ("Qwen3", QWEN3, {"head_dim": ...}, "q_proj.weight' has shape .64, 48., but .* .512, 48."),
    (
        "Qwen3",
        QWEN3,
        {"num_key_value_heads": 3},
        "num_heads 4 must be a multiple of num_kv_heads 3",
    ),
    ("Qwen3", QWEN3, PPLX | {"is_causal": True}, "is_causal is True, but pplx-embed's code sees"),
    (
        "Qwen3",
        QWEN3,
        PPLX | {"use_bidirectional_attention": False},
        "use_bidirectional_attention is",
    ),
    ("Qwen3", QWEN3, {"is_causal": "no"}, "is_causal must be true or false, got 'no'"),
    ("Qwen3", QWEN3, {"is_decoder": True}, "is_decoder is True"),
    ("Qwen3", QWEN3, {"attention_bias": True}, "missing tensor 'layers.0.self_attn.q_proj.bias'"),
    ("Qwen3", QWEN3, {"rope_theta": None}, "rope_theta must be a number, .* got None"),
    ("Qwen3", QWEN3, {"rope_parameters": {"rope_theta": None}}, "rope_parameters: rope_theta must"),
    ("Qwen3", QWEN3, {"rope_parameters": {"rope_theta": 9.0}}, "rope_theta is 1000000, and 9.0"),
    (
        "Qwen3",
        QWEN3,
        {"rope_scaling": {"rope_type": "longrope", "factor": 4.0}},
        "rope_scaling: .*longrope.* is not served; served: rope_theta with",
    ),
    (
        "Qwen3",
        QWEN3,
        {"rope_scaling": YARN | {"factor": "4"}},
        "rope_scaling: factor must be a num",
    ),
    ("Qwen3", QWEN3, {"rope_scaling": YARN | {"factor": 0}}, "rope_scaling: factor must be posit"),
    ("Qwen3", QWEN3, {"rope_scaling": YARN | {"mscale": -1}}, "rope_scaling: mscale must be a num"),
    ("Qwen3", QWEN3, {"rope_scaling": YARN | {"truncate": 1}}, "truncate must be true or false"),
    ("Qwen3", QWEN3, {"rope_scaling": YARN | {"beta_slow": 64.0}}, "beta_fast must be .* above"),
    (
        "Qwen3",
        QWEN3,
        {"rope_scaling": YARN | {"long_factor": [1.0]}},
        "long_factor.* is not served",
    ),
    ("Qwen3", QWEN3, {"rope_scaling": YARN | {"low_freq_factor": 1.0}}, "low_freq.* is not served"),
    (
        "Qwen3",
        QWEN3,
        {"rope_scaling": YARN | {"attention_factor": 0}},
        "rope_scaling: attention_factor must be positive",
    ),
    (
        "Qwen3",
        QWEN3,
        {"rope_scaling": YARN | {TRAINED: 0}},
        "rope_scaling: original_max_position_embeddings must be a whole number from 1",
    ),
    (
        "Qwen3",
        QWEN3,
        {"rope_scaling": YARN | {TRAINED: 64}, TRAINED: 65},
        "original_max_position_embeddings is 65, and 64 in .*rope_scaling, two spellings",
    ),
    ("Qwen3", QWEN3, {"rope_scaling": YARN, "rope_theta": 1}, '"yarn" needs a theta above 1'),
    (
        "Llama",
        LLAMA,
        {"rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0}},
        "rope_scaling: high_freq_factor is missing; rope_type 'llama3' needs one",
    ),
    (
        "Llama",
        LLAMA,
        {
            "rope_scaling": {
                "rope_type": "llama3",
                "factor": 8.0,
                "low_freq_factor": 4.0,
                "high_freq_factor": 4.0,
            }
        },
        "rope_scaling: .*high_freq_factor must be finite and above low_freq_factor",
    ),
    ("Llama", LLAMA, BOTH | {"is_causal": True}, "is_causal is True, but the code"),
    ("Llama", LLAMA, BOTH | {"pooling": "last"}, "pooling is 'last'"),
    ("Qwen3", QWEN3, {"pad_token_id": 384}, "pad_token_id must be null or one of the 384"),
    ("Qwen3", QWEN3, {"layer_types": ["full_attention"] * 4}, "a list of 3 layers, got 4"),
    (
        "Qwen3",
        QWEN3,
        {"layer_types": ["full_attention", "sliding_attention", "full_attention"]},
        "layers with a window, and sliding_window is 'not used'; expected use_sliding_window",
    ),
    (
        "Qwen3",
        QWEN3,
        {"use_sliding_window": True, "layer_types": ["sliding_attention"] * 3},
        "there are layers with a window, and sliding_window is None; expected",
    ),
    (
        "Qwen3",
        QWEN3,
        {"use_sliding_window": True, "sliding_window": 0, "max_window_layers": 1},
        "sliding_window is 0; expected use_sliding_window true and a positive sliding_window",
    ),
    (
        "Qwen3",
        QWEN3,
        {
            "use_sliding_window": True,
            "sliding_window": 9,
            "max_window_layers": 1,
            "is_causal": False,
        },
        "is_causal false with windows .* is not served",
    ),
    (
        "Qwen3",
        QWEN3,
        {"auto_map": {"AutoModel": "modeling_qwen.Qwen2Model"}, "is_causal": False},
        "auto_map names code of the checkpoint's own for its layers, 'modeling_qwen.Qwen2Model'",
    ),
    ("Qwen2", QWEN2, {"model_type": "qwen3"}, "not those of Qwen3 as config.json(.|\n)*q_norm"),
    ("Qwen2", QWEN2, {"use_mrope": True}, "use_mrope is True"),
    ("Qwen2", QWEN2, {"head_dim": 10}, "q_proj.weight' has shape .48, 48., but .* .60, 48."),
    ("Qwen2", QWEN2, {"head_dim": None}, "head_dim must be a whole number"),
    ("Qwen2", QWEN2, {"hidden_size": 50}, "hidden_size 50 is not a multiple of num_heads 6"),
    ("Qwen2", QWEN2, {"auto_map": {"AutoModel": "modeling.Qwen2Model"}}, "auto_map names code of"),
    ("Qwen2", QWEN2, {"auto_map": "modeling.Qwen2Model"}, "auto_map must be an object or null"),
    ("Qwen2", GTE_QWEN2, {"is_causal": ...}, "is_causal is missing, .* expected is_causal false"),
    ("Qwen2", GTE_QWEN2, {"is_causal": None}, "is_causal must be true or false, got None"),
    (
        "Qwen2",
        GTE_QWEN2,
        {"use_sliding_window": True},
        "windows are not served of gte-Qwen2's code",
    ),
    (
        "Qwen2",
        GTE_QWEN2,
        {"use_sliding_window": True, "is_causal": True},
        "use_sliding_window is True, but windows are not served of gte-Qwen2's code",
    ),
    (
        "Qwen2",
        GTE_QWEN2,
        {"layer_types": ["sliding_attention"] * 3},
        "there are layers with a window, and sliding_window is 'not used'",
    ),
    (
        "Qwen2",
        GTE_QWEN2,
        {"auto_map": {"AutoModel": "modeling_qwen2.Qwen2Model"}},
        "auto_map names code of the checkpoint's own for its layers, 'modeling_qwen2.Qwen2Model'",
    ),
    (
        "Qwen2",
        GTE_QWEN2,
        {"auto_map": {"AutoModel": "modeling_qwen.BiQwen2Model"}},
        "auto_map names code of the checkpoint's own for its layers, 'modeling_qwen.BiQwen2Model'",
    ),
    (
        "Qwen2",
        GTE_QWEN2,
        {"auto_map": {"AutoModelForCausalLM": "modeling_qwen.Qwen2ForCausalLM"}},
        "auto_map names code of the checkpoint's own for its layers, 'modeling_qwen.Qwen2ForCaus",
    ),
    (
        "Qwen2",
        GTE_QWEN2,
        {"auto_map": {"AutoModel": "modeling_qwen.Qwen2Model", "AutoModelForMaskedLM": "own.M"}},
        "auto_map names code of the checkpoint's own for its layers",
    ),
    ("Mistral", MISTRAL, {"model_type": "mixtral"}, "unknown architecture: model_type 'mixtral'"),
    ("Mistral", MISTRAL, {"model_type": ...}, "unknown architecture: model_type None"),
    ("Mistral", MISTRAL, {"sliding_window": 0}, "sliding_window must be null or positive, got 0"),
    ("Mistral", MISTRAL, {"sliding_window": True}, "sliding_window must be a whole number"),
    ("Mistral", MISTRAL, {"is_causal": False}, r"is_causal false with windows \(sliding_window 12"),
    (
        "Mistral",
        MISTRAL,
        {"sliding_window": ..., "is_causal": False},
        r"is_causal false with windows \(sliding_window 4096\) is not served",
    ),
    ("Mistral", MISTRAL, {"is_decoder": True}, "is_decoder is True"),
    ("Mistral", MISTRAL, {"head_dim": 10}, "q_proj.weight' has shape .48, 48., but .* .40, 48."),
    ("Mistral", MISTRAL, {"head_dim": 0}, "head_dim must be a whole number from 1 to"),
    ("Mistral", MISTRAL, {"num_attention_heads": 0}, "num_attention_heads must be .* from 1 to"),
    ("Mistral", MISTRAL, {"num_attention_heads": 16}, "rotary needs even heads, not 3"),
    ("Mistral", MISTRAL, {"num_hidden_layers": 2**31 - 1}, "2147483647, and the weights have 29"),
    ("Mistral", MISTRAL, {"num_hidden_layers": 4}, "missing tensor 'layers.3."),
    ("Mistral", MISTRAL, {"rope_theta": None}, "rope_theta must be a number, .* got None"),
    (
        "Mistral",
        MISTRAL,
        {"rope_scaling": {"type": "dynamic", "factor": 2.0}},
        "rope_scaling: .*dynamic.* is not served; served: rope_theta with",
    ),
    (
        "Mistral",
        MISTRAL,
        {"layer_types": ["full_attention", "sliding_attention", "full_attention"]},
        "layer_types are not all 'sliding_attention', as sliding_window 12 makes them",
    ),
    (
        "Mistral",
        MISTRAL,
        {"layer_types": ["sliding_attention"] * 3, "sliding_window": None},
        "layer_types are not all 'full_attention', as sliding_window None makes them",
    ),
    (
        "Mistral",
        MISTRAL,
        {"auto_map": {"AutoModel": "modeling_encoder.MistralEncoderModel"}},
        "auto_map names code of the checkpoint's own for its layers, 'modeling_encoder.Mistral",
    ),
    ("Mistral", MISTRAL, {"model_type": "nvembed"}, "unknown architecture: model_type 'nvembed'"),
    ("Llama", LLAMA, {"sliding_window": 9}, "sliding_window is 9, but Llama's layers have no win"),
    (
        "Llama",
        LLAMA,
        {"layer_types": ["full_attention", "sliding_attention", "full_attention"]},
        "layer_types has 'sliding_attention', but Llama's layers have no window; expected",
    ),
    ("Llama", LLAMA, {"layer_types": ["full_attention"]}, "a list of 3 layers, got 1"),
    (
        "Llama",
        LLAMA,
        {"attention_bias": True},
        "tensor 'model.layers.0.self_attn.q_proj.bias'",
    ),
    ("Llama", LLAMA, {"hidden_size": 50}, "hidden_size 50 is not a multiple of num_heads 6"),
    ("Llama", LLAMA, {"head_dim": 10}, "q_proj.weight' has shape .48, 48., but .* .60, 48."),
    ("Llama", LLAMA, {"num_hidden_layers": 2**31 - 1}, "2147483647, and the weights have 30"),
    ("Llama", LLAMA, {"pad_token_id": 384}, "pad_token_id must be null or one of the 384"),
    (
        "Llama",
        LLAMA,
        {"rope_scaling": {"rope_type": "llama3", "factor": 8.0}},
        "rope_scaling: low_freq_factor is missing; rope_type 'llama3' needs one",
    ),
    (
        "Llama",
        LLAMA,
        {"auto_map": {"AutoModel": "modeling_llama_encoder.LlamaEncoderModel"}},
        "auto_map names code of the checkpoint's own for its layers",
    ),
    *[
        (family, name, {key: value}, f"{key} is {value}.*no token of {family} sees one after it")
        for family, name in (("Gemma 1", GEMMA_1), ("Gemma 2", GEMMA_2))
        for key, value in (("is_causal", False), ("use_bidirectional_attention", True))
    ],
    ("Gemma 2", GEMMA_2, {"attn_logit_softcapping": 0}, "attn_logit_softcapping must be positive"),
    ("Gemma 2", GEMMA_2, {"attn_logit_softcapping": "50"}, "attn_logit_softcapping must be a num"),
    ("Gemma 2", GEMMA_2, {"sliding_window": None}, "sliding_window must be a whole number"),
    ("Gemma 2", GEMMA_2, {"layer_types": ["full_attention"]}, "a list of 4 layers, got 1"),
    ("Gemma 2", GEMMA_2, {"model_type": ...}, "unknown architecture: model_type None"),
    ("Gemma 2", GEMMA_2, {"model_type": "vaultgemma"}, "unknown architecture: .*'vaultgemma'"),
    ("Gemma 2", GEMMA_2, {"model_type": "gemma3_text"}, "unknown architecture: .*'gemma3_text'"),
    (
        "Gemma 2",
        GEMMA_2,
        {"auto_map": {"AutoModelForCausalLM": "gemma_model.CostWiseGemmaForCausalLM"}},
        "auto_map names code of the checkpoint's own for its layers",
    ),
    ("Gemma 2", GEMMA_2, {"rope_scaling": {"rope_type": "longrope"}}, "longrope.* is not served"),
    (
        "Gemma 1",
        GEMMA_1,
        {"hidden_activation": "silu"},
        "hidden_activation 'silu' is not what hidden_act 'gelu' stands for, gelu_tanh",
    ),
    (
        "Gemma 1",
        GEMMA_1,
        {"hidden_activation": "gelu"},
        "hidden_activation 'gelu' is not what hidden_act 'gelu' stands for, gelu_tanh",
    ),
    ("Gemma 2", GEMMA_2, {"attn_logit_softcapping": 1e39}, "score_cap must be in .1e-30, 1e.30"),
    *[
        (family, name, {"is_causal": None}, "is_causal is None")
        for family, name in (("Gemma 1", GEMMA_1), ("Gemma 2", GEMMA_2))
    ],
    (
        "Gemma 1",
        GEMMA_1,
        {"layer_types": ["full_attention", "sliding_attention", "full_attention"]},
        "layer_types has 'sliding_attention', but Gemma 1's layers have no window",
    ),
    *[
        ("Gemma 1", GEMMA_1, {key: 64}, f"{key} is 64, but transformers' class of Gemma 1 passes")
        for key in ("attn_logit_softcapping", "query_pre_attn_scalar", "sliding_window")
    ],
    ("Gemma 1", GEMMA_1, {"hidden_act": "gelu_10"}, "hidden_act 'gelu_10' is unknown"),
    ("Llama", LLAMA, {"model_type": "llama4_text"}, "unknown architecture: .*llama4_text.*Llama"),
]
