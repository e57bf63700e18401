"""`PyencConfig`: the configuration of a model that pyenc serves, of a `model_type` of its own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers import PreTrainedConfig

from ...errors import CheckpointError, InputError
from ...loading.own_type import OWN_TYPE, POSITIONS, published
from ...models import EncoderConfig
from . import labels

LEFT_OUT = frozenset({"auto_map", "attn_implementation", "_attn_implementation"})
"""Of a published config: remote code, which is never run, and attention that there is not here."""

TOKENIZERS = {
    "bert": "BertTokenizer",
    "nomic_bert": "BertTokenizer",
    "xlm-roberta": "XLMRobertaTokenizer",
}
"""By published `model_type`, where no file names a tokenizer: as transformers has it."""

COMMON = (
    "architectures", "torch_dtype", "dtype", "pad_token_id", "bos_token_id", "eos_token_id",
    "cls_token_id", "sep_token_id", "mask_token_id", "tokenizer_class",
    "sentence_transformers", "sbert_ce_default_activation_function",
    "output_hidden_states", "output_attentions", "return_dict",
)  # fmt: skip
"""Published keys that mean in any configuration what they mean in every other."""

PUBLISHED_FIELD = "published"

SIZES = {
    "vocab_size": "vocab_size",
    "hidden_size": "hidden_size",
    "num_hidden_layers": "depth",
    "num_attention_heads": "num_heads",
    "intermediate_size": "intermediate_size",
    "type_vocab_size": "type_vocab_size",
    "layer_norm_eps": "norm_eps",
    "hidden_dropout_prob": "hidden_dropout",
    "attention_probs_dropout_prob": "attention_dropout",
}
"""What transformers and those who use it read -> what `EncoderConfig` calls it."""

UNREAD = frozenset({
    "model_type", "transformers_version", "_name_or_path", "initializer_range", "use_cache",
    "gradient_checkpointing", "problem_type", "unpad_inputs", "use_memory_efficient_attention",
    "pack_qkv", "use_flash_attn", "fused_bias_fc", "fused_dropout_add_ln", "use_xentropy",
    "lora_main_params_trainable",
})  # fmt: skip
"""Published keys that change no answer: what trainers set, and how the original code computes."""


class PyencConfig(PreTrainedConfig):
    """A published `config.json`, whole, and beside it the sizes that transformers asks for.

    Attributes:
        published: the `config.json` of the checkpoint in its own words. It alone decides.
        labels_said: whether a file or call says how many labels there are. Never written.
        max_position_embeddings: tokens a text may have by the checkpoint's word, where the
            tokenizer does not say less: what sentence-transformers cuts texts at. Never written,
            and missing where sentence-transformers saved the tokenizer's own limit beside it.
    """

    model_type = OWN_TYPE
    published: dict[str, Any] | None = None
    labels_said: bool = True

    def __setattr__(self, key: str, value: Any) -> None:
        """As of any configuration; the sizes, and what config.json says of the layers, are what
        is, and cannot be set otherwise.

        Raises:
            InputError: one of them is set to another value than it has.
        """
        published = self.__dict__.get(PUBLISHED_FIELD) or {}
        if key in SIZES or key == POSITIONS:
            stands = self.__dict__.get(key, value)
        elif key in published and key not in UNREAD and key not in {*COMMON, *labels.KEYS}:
            stands = published[key]
        else:
            stands = value
        if stands != value:
            way = "give it to from_pretrained"
            if key not in published:
                way += " as its config.json calls it, where that has a name for it"
            raise InputError(
                f"{key} of a {type(self).__name__} is what its checkpoint says, {stands!r}, and "
                f"cannot be set to {value!r}; {way}"
            )
        super().__setattr__(key, value)

    def to_diff_dict(self) -> dict[str, Any]:
        """What is written: without the number that a tokenizer's limit would be cut to.

        It follows from the published `config.json`, where one is needed.
        """
        written: dict[str, Any] = super().to_diff_dict()
        for key in (POSITIONS, "labels_said"):
            written.pop(key, None)
        return written


def own_config(
    said: Mapping[str, Any],
    shape: EncoderConfig,
    beside: Mapping[str, Any],
    *,
    capped: bool = True,
    **fields: Any,
) -> tuple[PyencConfig, dict[str, Any]]:
    """The configuration of a checkpoint.

    Args:
        said: its published `config.json`.
        shape: the encoder that it describes.
        beside: the `config.json` of the folder, which may be one around the published one.
        capped: whether it says what a tokenizer's limit is cut to.
        fields: over what every configuration of transformers has, such as `dtype` and
            `output_hidden_states`.

    Returns:
        The configuration, and the fields that it has no use for.
    """
    inner = {key: value for key, value in said.items() if key not in LEFT_OUT}
    common = {**inner, **beside}
    values: dict[str, Any] = {key: common[key] for key in COMMON if common.get(key) is not None}
    if "tokenizer_class" not in values and said.get("model_type") in TOKENIZERS:
        values["tokenizer_class"] = TOKENIZERS[said["model_type"]]
    where = str(fields.get("name_or_path"))
    file = labels.checked(common, f"{where}: config.json", CheckpointError)
    given = {key: fields.pop(key, None) for key in labels.KEYS}
    call = labels.checked(given, where, InputError)
    if wrong := labels.contradiction(call):
        raise InputError(f"{where}: {wrong}")
    values |= labels.together(file, call)
    values["labels_said"] = bool({"id2label", "num_labels"} & {*file, *call})
    values |= {ours: getattr(shape, theirs) for ours, theirs in SIZES.items()}
    if capped or shape.num_positions:
        stated = said.get(POSITIONS)
        values[POSITIONS] = max(
            shape.max_length, stated if type(stated) is int and not shape.num_positions else 0
        )
    values[PUBLISHED_FIELD] = inner
    fields.pop("attn_implementation", None)
    config, unused = PyencConfig.from_dict(values, return_unused_kwargs=True, **fields)
    return config, unused


def published_of(config: PyencConfig) -> dict[str, Any]:
    """The `config.json` in the family's own words.

    Raises:
        CheckpointError: the configuration was not made of one.
    """
    return published({"model_type": OWN_TYPE, PUBLISHED_FIELD: config.published})
