"""Names that are not known, of keywords and attributes: an error that says which one was meant."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable
from difflib import get_close_matches
from typing import ParamSpec, TypeVar

from ..errors import InputTypeError

P = ParamSpec("P")
R = TypeVar("R")

ELSEWHERE = {
    "batch_size": "batch_tokens",
    "cache_folder": "HF_HOME in the environment",
    "convert_to_numpy": "convert_to_tensor",
    "max_seq_length": "max_length",
    "model_max_length": "max_length",
    "model_name_or_path": "name_or_folder",
    "normalize_embeddings": "normalize",
    "output_value": "output",
    "pooling_mode": "pooling",
    "prompts": "prompt",
    "sentences": "texts",
    "show_progress_bar": "progress",
    "token": "HF_TOKEN in the environment",
    "tokenizer_name_or_path": "tokenizer",
    "torch_dtype": "dtype",
}
"""What sentence-transformers and transformers call it -> ours."""


def meant(name: str, known: Iterable[str]) -> str:
    """The end of a message about a name that is not among the known: "; the nearest is ...", or
    nothing where none is near."""
    names = list(known)
    ours = ELSEWHERE.get(name, "")
    if ours in names:
        return f"; the nearest is {ours!r}"
    if " " in ours:
        return f"; that is {ours}"
    close = get_close_matches(name, names, 1, 0.5)
    return f"; the nearest is {close[0]!r}" if close else ""


def names_nearest(function: Callable[P, R]) -> Callable[P, R]:
    """A decorator: an unknown keyword is an `InputTypeError` that names the nearest one.

    `InputTypeError` is a TypeError too, which is what Python raises.
    """
    parameters = inspect.signature(function).parameters
    known = [name for name in parameters if name != "self"]

    @functools.wraps(function)
    def checked(*args: P.args, **kwargs: P.kwargs) -> R:
        for name in kwargs:
            if name not in parameters:
                raise InputTypeError(
                    f"{function.__name__}() has no argument {name!r}{meant(name, known)}; it has: "
                    f"{', '.join(known)}"
                )
        return function(*args, **kwargs)

    return checked
