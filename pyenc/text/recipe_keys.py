"""The keys of sentence-transformers' files: each is used, known to be harmless, or refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..errors import CheckpointError
from ..loading import read_json

SENTENCE_CONFIGS = (
    "bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet",
)  # fmt: skip
"""The middle of `sentence_*_config.json`, in the order in which one is looked for."""

TOKENIZER_SETTINGS = ("tokenizer_args", "processor_kwargs")
"""What hands settings to the tokenizer there; the second is the newer name, and passed over where
the first is there, be it empty."""

POOLING_FLAGS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}

_GIVES = {
    "CrossEncoder": "scores of pairs", "SparseEncoder": "sparse vectors",
    "MultiVectorEncoder": "a vector for each token",
}  # fmt: skip
"""What other models of sentence-transformers give, by `model_type`."""

_ENCODER = {
    "prompts", "default_prompt_name", "similarity_fn_name", "truncate_dim",  # used
    "__version__", "requirements",  # say nothing about a vector
    "model_type",
}  # fmt: skip

VECTOR = "sentence_embedding"
"""What modules call the vector of a text."""

_NAMES = ("module_input_name", "module_output_name")

_POOLING = {
    "pooling_mode", "include_prompt",  # used
    "word_embedding_dimension", "embedding_dimension",  # wrong in published files
}  # fmt: skip

_HOW_TO_FETCH = {
    "_commit_hash", "cache_dir", "code_revision", "force_download", "local_files_only", "proxies",
    "revision", "token", "trust_remote_code", "use_auth_token", "use_fast",
}  # fmt: skip

_HOW_TO_RUN = {
    "attn_implementation", "device_map", "dtype", "low_cpu_mem_usage", "torch_dtype",
    "use_flash_attention_2", "use_memory_efficient_attention", "use_safetensors", "unpad_inputs",
    "add_pooling_layer",
}  # fmt: skip


def check_encoder(path: Path, config: dict[str, Any]) -> None:
    """Refuses what `config_sentence_transformers.json` asks for and nobody here does."""
    kind = config.get("model_type", "SentenceTransformer")
    if kind != "SentenceTransformer":
        gives = _GIVES.get(kind) if isinstance(kind, str) else None
        right = f"; pyenc.accelerate(sentence_transformers.{kind}(...)) serves it" if gives else ""
        raise CheckpointError(
            f"{path}: model_type {kind!r:.80} is not served: it gives {gives or 'something else'}, "
            f'not one vector a text; expected "SentenceTransformer"{right}'
        )
    for key in config:
        if key not in _ENCODER:
            raise CheckpointError(
                f"{path}: {key}: an unknown setting; known: {', '.join(sorted(_ENCODER))}"
            )


def check_pooling(path: Path, config: dict[str, Any]) -> None:
    """Refuses keys of a Pooling's `config.json` that nobody here knows."""
    for key in config:
        if key not in _POOLING and key not in POOLING_FLAGS:
            known = ", ".join([*sorted(_POOLING), *POOLING_FLAGS])
            raise CheckpointError(f"{path}: {key}: an unknown setting; known: {known}")


def check_dense(path: Path, config: dict[str, Any]) -> None:
    """Refuses what a Dense's `config.json` asks for and nobody here does, but for the activation
    and the sizes."""
    for key, value in config.items():
        if key in ("bias", "use_residual"):
            fits, expected = isinstance(value, bool), "true or false"
        elif key in _NAMES:
            fits, expected = _on_vectors(key, value), f'"{VECTOR}"'
        else:
            fits = key in ("in_features", "out_features", "activation_function")
            expected = "no such key"
        if not fits:
            raise CheckpointError(f"{path}: {key} {value!r:.80} is not served; expected {expected}")


def check_normalize(path: Path, own: bool) -> None:
    """Refuses a Normalize that is of something else than vectors.

    Args:
        path: its `config.json`, which older ones have not.
        own: whether that is its own: one without a folder reads the encoder's.
    """
    if not path.is_file():
        return
    for key, value in read_json(path).items():
        if key in _NAMES and not _on_vectors(key, value):
            raise CheckpointError(f'{path}: {key} {value!r:.80} is not served; expected "{VECTOR}"')
        if own and key not in _NAMES:
            raise CheckpointError(f"{path}: {key}: an unknown setting; known: {', '.join(_NAMES)}")


def _on_vectors(key: str, value: Any) -> bool:
    """Is what a module reads or writes the vector of a text?"""
    return value == VECTOR or (value is None and key == "module_output_name")


def check_transformer(path: Path, config: dict[str, Any]) -> None:
    """Refuses what `sentence_bert_config.json` asks for and nobody here does."""
    for key, value in config.items():
        if key == "do_lower_case":
            fits, expected = value is None or isinstance(value, bool), "true or false"
        elif key == "transformer_task":
            fits, expected = value == "feature-extraction", '"feature-extraction"'
        elif key == "module_output_name":
            fits, expected = value == "token_embeddings", '"token_embeddings"'
        elif key == "modality_config":
            text = value.get("text") if isinstance(value, dict) else None
            fits = isinstance(text, dict) and (
                text.get("method"), text.get("method_output_name")
            ) == ("forward", "last_hidden_state")  # fmt: skip
            expected = "text by forward and last_hidden_state"
        elif key == "processing_kwargs":
            fits = not value or (isinstance(value, dict) and not {"text", "common"} & set(value))
            expected = "nothing for text"
        elif key in ("tokenizer_name_or_path", "query_length", "document_length"):
            fits, expected = value is None, "null"
        elif key == "query_expansion":
            fits, expected = not value, "null"
        elif key in ("model_args", "model_kwargs", "config_args", "config_kwargs"):
            fits = not value or (
                isinstance(value, dict) and set(_asked(value)) <= _HOW_TO_FETCH | _HOW_TO_RUN
            )
            expected = f"at most {', '.join(sorted(_HOW_TO_FETCH | _HOW_TO_RUN))}"
        elif key in TOKENIZER_SETTINGS:
            fits = not value or (isinstance(value, dict) and "subfolder" not in _asked(value))
            expected = "an object without subfolder: the tokenizer is beside the encoder"
        else:
            fits, expected = key in ("max_seq_length", "unpad_inputs"), "no such key"
        if not fits:
            raise CheckpointError(f"{path}: {key} {value!r:.80} is not served; expected {expected}")


def tokenizer_settings(path: Path, config: dict[str, Any]) -> dict[str, Any]:
    """What `sentence_bert_config.json` hands to the tokenizer, over its own configuration."""
    said = map(config.get, TOKENIZER_SETTINGS)
    given: dict[str, Any] = next((each for each in said if each is not None), {})
    return {key: value for key, value in _asked(given).items() if key not in _HOW_TO_FETCH}


def _asked(arguments: dict[str, Any]) -> dict[str, Any]:
    """Arguments of transformers' loading, but for a subfolder that is none."""
    return {k: v for k, v in arguments.items() if v or k != "subfolder"}
