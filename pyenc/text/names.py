"""Names that are not known, of keywords and attributes: an error that says which one was meant."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable, Sequence
from difflib import get_close_matches
from typing import Any, ParamSpec, TypeVar

from ..errors import InputTypeError

P = ParamSpec("P")
R = TypeVar("R")

ELSEWHERE = {
    "batch_size": "batch_tokens",
    "cache_folder": "HF_HOME in the environment",
    "calibration_embeddings": "calibration",
    "chunk_size": "batch_tokens",
    "convert_to_numpy": "convert_to_tensor",
    "default_prompt_name": "prompt_name",
    "device": "devices",
    "device_map": "device",
    "inputs": "texts",
    "local_files_only": "HF_HUB_OFFLINE=1 in the environment",
    "max_seq_length": "max_length",
    "model_max_length": "max_length",
    "model_name": "model",
    "model_name_or_path": "name_or_folder",
    "normalize_embeddings": "normalize",
    "output_value": "output",
    "pool": "the method encode of `encoder.pool(devices)`",
    "pooling_mode": "pooling",
    "prompts": "prompt",
    "sentences": "texts",
    "show_progress_bar": "progress",
    "target_devices": "devices",
    "default_task": "task",
    "task": "the method encode_query or encode_document, or task= of pyenc.load where a checkpoint "
    "has adapters",
    "token": "HF_TOKEN in the environment",
    "tokenizer_name_or_path": "tokenizer",
    "torch_dtype": "dtype",
    "trust_remote_code": "not needed: no checkpoint's own code is ever run",
    "use_auth_token": "HF_TOKEN in the environment",
}
"""What sentence-transformers and transformers call it -> ours."""

HERE_ALREADY = {
    "convert_to_numpy": "numpy is what it gives unless convert_to_tensor=True",
    "device": "a model stays on the device that `pyenc.load(device=...)` put it on; devices=[...] "
    "are processes",
}
"""What else is to be said of some."""


def meant(name: str, known: Iterable[str]) -> str:
    """The end of a message about a name that is not among the known: "; the nearest is ...", or
    nothing where none is near."""
    names = list(known)
    ours, more = ELSEWHERE.get(name, ""), HERE_ALREADY.get(name, "")
    if ours in names:
        return f"; the nearest is {ours!r}" + (f" ({more})" if more else "")
    if " " in ours:
        return f"; that is {ours}"
    close = get_close_matches(name, names, 1, 0.5)
    return f"; the nearest is {close[0]!r}" if close else ""


def check_names(
    called: str,
    given: Iterable[str],
    known: Sequence[str],
    hint: Callable[[str, Sequence[str]], str] = meant,
) -> None:
    """Are these keywords known?

    Args:
        called: what they are given to, for the message.
        given: their names.
        known: those that there are.
        hint: as `meant`.

    Raises:
        InputTypeError: one is not; it is a TypeError too, which is what Python raises.
    """
    for name in given:
        if name not in known:
            raise InputTypeError(
                f"{called}() has no argument {name!r}{hint(name, known)}; it has: "
                f"{', '.join(known)}"
            )


def names_nearest(
    function: Callable[P, R], hint: Callable[[str, Sequence[str]], str] = meant
) -> Callable[P, R]:
    """A decorator: an unknown keyword is an `InputTypeError` that names the nearest one."""
    known = [name for name in inspect.signature(function).parameters if name != "self"]
    # What makes an object is called by the name of its class.
    called = function.__qualname__.removesuffix(".__init__").rpartition(".")[2]

    @functools.wraps(function)
    def checked(*args: P.args, **kwargs: P.kwargs) -> R:
        check_names(called, kwargs, known, hint)
        return function(*args, **kwargs)

    return checked


def keywords_of(
    other: Callable[..., Any], leave_out: tuple[str, ...] = ()
) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """A decorator: the keywords of `other`, but for some, stand in the signature where the function
    has `**options`; unknown ones are refused as by `names_nearest`."""

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        own = inspect.signature(function)
        named = [p for p in own.parameters.values() if p.kind is not p.VAR_KEYWORD]
        taken = {*own.parameters, *leave_out}
        named += [
            p
            for p in inspect.signature(other).parameters.values()
            if p.kind is p.KEYWORD_ONLY and p.name not in taken
        ]
        function.__signature__ = own.replace(parameters=named)  # type: ignore[attr-defined]
        return names_nearest(function)

    return decorate
