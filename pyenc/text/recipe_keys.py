"""The keys of sentence-transformers' files: each is used, known to be harmless, or refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..errors import CheckpointError

SENTENCE_CONFIGS = (
    "bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet",
)  # fmt: skip
"""The middle of `sentence_*_config.json`, in the order in which one is looked for."""

_ENCODER = {
    "prompts", "default_prompt_name", "similarity_fn_name", "truncate_dim",  # used
    "__version__", "model_type",  # say nothing about a vector
}  # fmt: skip

_HOW_TO_FETCH = {
    "_commit_hash", "cache_dir", "code_revision", "local_files_only", "revision", "subfolder",
    "token", "trust_remote_code", "use_auth_token", "use_fast",
}  # fmt: skip

_HOW_TO_RUN = {
    "attn_implementation", "device_map", "dtype", "low_cpu_mem_usage", "torch_dtype",
    "use_flash_attention_2", "use_memory_efficient_attention", "use_safetensors", "unpad_inputs",
    "add_pooling_layer",
}  # fmt: skip


def check_encoder(path: Path, config: dict[str, Any]) -> None:
    """Refuses what `config_sentence_transformers.json` asks for and nobody here does."""
    for key in config:
        if key not in _ENCODER:
            raise CheckpointError(
                f"{path}: {key}: an unknown setting; known: {', '.join(sorted(_ENCODER))}"
            )


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
                isinstance(value, dict) and set(value) <= _HOW_TO_FETCH | _HOW_TO_RUN
            )
            expected = f"at most {', '.join(sorted(_HOW_TO_FETCH | _HOW_TO_RUN))}"
        elif key in ("tokenizer_args", "processor_kwargs"):
            fits, expected = not value or isinstance(value, dict), "an object"
        else:
            fits, expected = key in ("max_seq_length", "unpad_inputs"), "no such key"
        if not fits:
            raise CheckpointError(f"{path}: {key} {value!r:.80} is not served; expected {expected}")


def tokenizer_settings(path: Path, config: dict[str, Any]) -> dict[str, Any]:
    """What `sentence_bert_config.json` hands to the tokenizer, over its own configuration."""
    given = config.get("tokenizer_args") or config.get("processor_kwargs") or {}
    return {key: value for key, value in given.items() if key not in _HOW_TO_FETCH}
