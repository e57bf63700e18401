"""Qwen3-Embedding-0.6B, -4B, -8B, pplx-embed, gte-Qwen2, and other encoders made of Qwen 2 and 2.5.

Zhang et al., arXiv 2506.05176: Qwen 3's language model (Yang et al., arXiv 2505.09388), whose last
token's state is the vector. Llama's layers with a norm of each head's queries and keys before they
are turned; Qwen 2's (Yang et al., arXiv 2407.10671) have none, and biases there. No token sees one
after it.

gte-Qwen2 (Alibaba-NLP/gte-Qwen2-1.5B-instruct, and those that were made of it) has Qwen 2's layers,
trained to both sides, and code of its own, to which tokens that see one side or both are an
argument of a call. By default that is said to be one (vLLM's documentation of early 2025), whatever
`config.json` has; later revisions say `"is_causal": false` there, by which vLLM,
text-embeddings-inference and transformers' own class go, and so does what is here. Older ones leave
it out, and are refused.

pplx-embed (Perplexity's, arXiv 2602.11151) has Qwen 3's layers too, and code of its own, by which
they see both sides whatever `config.json` says.

Language models and rerankers have the same tensors and the same `config.json`: they load as what
they are, and what a vector of theirs would be is not in their files.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ...errors import CheckpointError
from ..config import EncoderConfig
from .config_file import ConfigFile
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
from .windows import listed

PPLX_TYPE = "bidirectional_pplx_qwen3"
"""`model_type` of pplx-embed."""

GTE_CODE = "modeling_qwen.Qwen2Model"
"""What `auto_map` calls gte-Qwen2's layers, in copies of another repository's name before it."""


def gte_code(named: object) -> bool:
    """Does an `auto_map` name gte-Qwen2's code for the layers, and no other?"""
    if not isinstance(named, Mapping):
        return False
    code = {
        key: str(named[key]).rpartition("--")[2] for key in named if key.startswith("AutoModel")
    }
    module = GTE_CODE.partition(".")[0]
    ours = all(name.startswith(f"{module}.") for name in code.values())
    return ours and code.get("AutoModel") == GTE_CODE


def _check_gte(config: ConfigFile) -> None:
    """What gte-Qwen2's code does otherwise than transformers' class, as config.json has it."""
    if "is_causal" not in config.values:
        raise CheckpointError(
            f"{config.path}: is_causal is missing, and auto_map names gte-Qwen2's code for the "
            "layers, to which it is an argument: expected is_causal false, every token sees those "
            "after it too, as gte-Qwen2 was trained by its model card, or true"
        )
    config.require(
        "use_sliding_window", (False,), False,
        "windows are not served of gte-Qwen2's code, whose attentions differ in them",
    )  # fmt: skip


def _local(config: ConfigFile, layers: int, causal: bool) -> tuple[tuple[bool, ...], int | None]:
    """Which layers see a window, and how many tokens before its own a token sees in them."""
    sliding, width = config.flag("use_sliding_window", False), None
    if sliding and config.values.get("sliding_window", 4096) is not None:
        width = config.integer("sliding_window", 4096)
    local = listed(config, layers)
    if local is None and width is not None:
        first = config.integer("max_window_layers", 28)
        local = tuple(i >= first for i in range(layers))
    if local is None or not any(local):
        return (), None
    if not width:
        said = config.values.get("sliding_window") if sliding else "not used"
        raise CheckpointError(
            f"{config.path}: there are layers with a window, and sliding_window is {said!r}; "
            "expected use_sliding_window true and a positive sliding_window"
        )
    refuse_both_sides(config, causal, "use_sliding_window")
    return local, width - 1  # the file's number counts the token itself


def _config(config: ConfigFile, *, causal: bool, **own: Any) -> EncoderConfig:
    config.require("use_mrope", (False, None), None, "pyenc turns heads by one position a token")
    layers = config.size("num_hidden_layers", 32)
    local, window = _local(config, layers, causal)
    return language_model(
        config,
        words=151_936,
        num_layers=layers,
        num_heads=config.size("num_attention_heads", 32),
        num_kv_heads=optional(config, "num_key_value_heads", 32),
        intermediate_size=config.size("intermediate_size", 22_016),
        max_length=config.size("max_position_embeddings", 32_768),
        window=window,
        local=local,
        causal=causal,
        up_bias=False,
        down_bias=False,
        **own,
    )


def _qwen3(config: ConfigFile, names: Names) -> EncoderConfig:
    biased = config.flag("attention_bias", False)
    both_sides = config.values.get("model_type") == PPLX_TYPE
    if both_sides:
        for key, said in (("is_causal", False), ("use_bidirectional_attention", True)):
            config.require(key, (said, None), None, "pplx-embed's code sees both sides")
    return _config(
        config,
        causal=not both_sides and config.flag("is_causal", True),
        known_code=both_sides,
        head_size=config.size("head_dim", 128),
        qkv_bias=biased,
        out_bias=biased,
        head_norm=True,
    )


def _qwen2(config: ConfigFile, names: Names) -> EncoderConfig:
    known = gte_code(config.section("auto_map").values)
    if known:
        _check_gte(config)
    return _config(
        config,
        causal=config.flag("is_causal", True),
        head_size=config.size("head_dim") if "head_dim" in config.values else None,
        qkv_bias=True,
        out_bias=False,
        head_norm=False,
        known_code=known,
    )


FAMILY = Family(
    name="Qwen3",
    checkpoints=(
        Published(
            "Qwen3-Embedding-0.6B, -4B, -8B",
            "golden",
            "32,768 (0.6B) by its files; rotary positions have no table",
        ),
        Published(
            "jina-embeddings-v5-text-small",
            "unverified",
            "32,768 by its files; rotary positions have no table",
            'adapters by task="retrieval" and so on, merged as by peft; layers verified on small '
            "checkpoints of transformers' class; its files not seen",
        ),
        Published(
            "pplx-embed-v1-0.6b, -4b",
            "unverified",
            "32,768 by their model card; rotary positions have no table",
            "layers held against transformers' class with is_causal false, their bytes against the "
            "written-out formula; their files not seen",
        ),
    ),
    signature=(*SIGNATURE, "layers.0.self_attn.q_norm.weight"),
    # Other models of the same names (Qwen's of several kinds, OLMo) have other arithmetic.
    accepts=lambda config: config.values.get("model_type") in ("qwen3", PPLX_TYPE),
    config=_qwen3,
    parts=lambda config, names: parts(config),
    model_types=("qwen3", PPLX_TYPE),
    prefixes=("", "model."),
    set_aside=("lm_head.",),
    tied={"lm_head.weight": "embeddings.word.weight"},
    layer=LAYER,
)

FAMILY_2 = replace(
    FAMILY,
    name="Qwen2",
    checkpoints=(
        Published(
            "jina-code-embeddings-0.5b, -1.5b",
            "unverified",
            "32,768 by their files",
            "layers verified on small checkpoints of transformers' class; their files not seen",
        ),
        Published(
            "gte-Qwen2-1.5B-instruct, Qodo-Embed-1-1.5B, inf-retriever-v1-1.5b",
            "unverified",
            "32,768 by gte's files; rotary positions have no table",
            "layers verified on small checkpoints of transformers' class, to both sides; their "
            "files are followed (is_causal, add_eos_token), and not their code, which is said to "
            "see one side of revisions whose files say both",
        ),
        Published(
            "gte-Qwen2-7B-instruct, stella_en_1.5B_v5",
            "unverified",
            "by their files; rotary positions have no table",
            "the same, once config.json says is_causal, true or false: theirs is believed to leave "
            "it out, and is refused so",
        ),
        Published(
            "KaLM-embedding-multilingual-mini-v1, -instruct-v1, -instruct-v1.5",
            "unverified",
            "512 by its model card; rotary positions have no table",
            "as transformers' class has them: their model card asks for no remote code",
        ),
    ),
    signature=SIGNATURE,
    accepts=lambda config: config.values.get("model_type") == "qwen2",
    config=_qwen2,
    model_types=("qwen2",),
)
