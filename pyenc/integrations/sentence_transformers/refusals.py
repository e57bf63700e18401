"""What of sentence-transformers cannot be accelerated, and why."""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Any

from torch import nn

from ..borrowed.refusals import Refused

MODALITIES = {"text", "message"}
TASKS = {
    "feature-extraction": ("token_embeddings", "last_hidden_state"),
    "sequence-classification": ("scores", "logits"),
    "fill-mask": ("token_embeddings", "logits"),
    "text-generation": ("causal_logits", "logits"),
}
"""Task of a `Transformer` -> the feature that it makes, and of which of its model's answers."""

LAST = "text-generation"
"""Task of which the logits of the last place are read, of rows that are padded on the left."""


def check_version(version: str) -> None:
    """Of sentence-transformers.

    Raises:
        Refused: it is not one whose modules are known.
    """
    major = re.match(r"\d+", version)
    if major is None or int(major[0]) != 6:
        raise Refused(f"this is sentence-transformers {version}, and its modules are known of 6.x")


def check_first(first: nn.Module, plain: Collection[type]) -> None:
    """The first module of a model is one whose tokens can be packed.

    Args:
        plain: `Transformer` of sentence-transformers, and what it calls otherwise.

    Raises:
        Refused: it is not.
    """
    kind = type(first).__name__
    if kind == "Router":
        raise Refused("its first module is a Router: which of several encoders serves is not ours")
    if type(first) not in plain:
        raise Refused(f"its first module is a {kind}, and not sentence-transformers' Transformer")
    own: Any = first
    try:
        backend, task = own.backend, own.transformer_task
        modalities, output = own.modality_config, own.module_output_name
        flat = own.can_flatten_inputs
    except AttributeError as error:
        raise Refused(f"its Transformer module is not as known: {error}") from error
    if backend != "torch":
        raise Refused(f'its backend is "{backend}", and not "torch"')
    if task not in TASKS:
        raise Refused(f'its task is "{task}", and not one of {", ".join(TASKS)}')
    feature, answer = TASKS[task]
    strange = [str(name) for name in modalities if name not in MODALITIES]
    if strange:
        raise Refused(f"it is multimodal: it takes {', '.join(strange)}")
    for name, said in modalities.items():
        if output != feature or said != {
            **said, "method": "forward", "method_output_name": answer
        }:  # fmt: skip
            raise Refused(
                f"its {output} of {name} is {said.get('method_output_name')} of "
                f'{said.get("method")}, and not the {answer} that are its task\'s ("{task}")'
            )
    if flat:
        raise Refused("flash attention packs its tokens already")


def has_head(module: Any) -> bool:
    """Whether the model of a `Transformer` has a head, and answers with something of that."""
    return bool(module.transformer_task != "feature-extraction")
