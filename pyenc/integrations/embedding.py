"""What all embedders share: one encoder, its options, and which prompt is whose."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import numpy as np
import torch
from torch import Tensor

from ..errors import InputError, InputTypeError
from ..text import Recipe, TextEncoder, load
from ..text.arguments import check_many, check_side
from ..text.names import ELSEWHERE, check_names, meant, names_nearest
from ..text.precision import RANGED

PROMPT_NAMES = {"query": ("query",), "document": ("document", "passage", "corpus")}
"""What checkpoints call the prompt of each kind, in the order of sentence-transformers."""

BEFORE = ("prompt", "prompt_name", "instruction")
"""Options of `encode` that say what is put before a text."""


P = ParamSpec("P")
R = TypeVar("R")

TAKEN = ("self", "texts", "name_or_folder")
"""What an embedder gives itself."""

INSTRUCTIONS = {
    "query_instruction": 'query_encode_kwargs={"prompt": ...}',
    "text_instruction": 'encode_kwargs={"prompt": ...}',
    "embed_instruction": 'encode_kwargs={"prompt": ...}',
    "multi_process": 'encode_kwargs={"devices": [...]}',
    "show_progress": 'encode_kwargs={"progress": True}',
}
"""What other embedders call what is put before a text, and two more that no name is near to."""


def place_of(name: str, known: Sequence[str]) -> str:
    """As `meant`, of a keyword of an embedder; one of `pyenc.load` or of `TextEncoder.encode` is
    said to go where those are given."""
    ours = ELSEWHERE.get(name, "")
    if name in INSTRUCTIONS and INSTRUCTIONS[name].partition("=")[0] in known:
        return f"; that is {INSTRUCTIONS[name]}"
    if ours not in known:
        for one in (name, ours):
            for options, function in (
                ("model_kwargs", load),
                ("encode_kwargs", TextEncoder.encode),
            ):
                if one in inspect.signature(function).parameters and options in known:
                    return f"; that is {options}={{{one!r}: ...}}"
    return meant(name, known)


def options_nearest(function: Callable[P, R]) -> Callable[P, R]:
    """`names_nearest` of what makes an embedder."""
    return names_nearest(function, place_of)


def checked_options(
    name: str, given: Mapping[str, Any] | None, function: Callable[..., Any]
) -> dict[str, Any]:
    """Options that an embedder hands on, looked at where it is made and not at its first text.

    Args:
        name: what the embedder calls them.
        given: keyword arguments by name.
        function: who takes them.

    Raises:
        InputTypeError: they are no dict, or one of them does not exist; the message names it.
    """
    if given is None:
        return {}
    if not isinstance(given, Mapping):
        raise InputTypeError(
            f"{name} must be a dict of keyword arguments, got {type(given).__name__}"
        )
    known = [key for key in inspect.signature(function).parameters if key not in TAKEN]
    check_names(f"{name}: {function.__name__}", given, known)
    return dict(given)


def loading_options(given: Mapping[str, Any] | None) -> dict[str, Any]:
    """`checked_options` of `pyenc.load`."""
    return checked_options("model_kwargs", given, load)


def encode_options(given: Mapping[str, Any] | None, name: str = "encode_kwargs") -> dict[str, Any]:
    """`checked_options` of `TextEncoder.encode`."""
    return checked_options(name, given, TextEncoder.encode)


def plain(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options as JSON and YAML can hold them; `pyenc.load` and `encode` take them so too."""
    return {name: _plain(value) for name, value in options.items()}


def _plain(value: Any) -> Any:
    if isinstance(value, torch.dtype | torch.device):
        return str(value).removeprefix("torch.")
    if isinstance(value, np.ndarray | np.generic | Tensor):
        return value.tolist()
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return str(value) if isinstance(value, Path) else value


def check_model(model: Any) -> None:
    """Is it what an embedder takes?

    Raises:
        InputTypeError: it is neither an encoder nor a name.
    """
    if not isinstance(model, TextEncoder | str | Path):
        raise InputTypeError(
            f"model must be a TextEncoder, a folder or a Hub name, got {type(model).__name__}"
        )


def encoder_of(model: TextEncoder | str | Path, options: Mapping[str, Any] | None) -> TextEncoder:
    """The encoder, loaded where a name or a folder is given.

    Args:
        model: a `TextEncoder`, or what `pyenc.load` takes.
        options: keyword arguments of `pyenc.load`.

    Raises:
        InputError: options beside a model that is loaded already, or that do not exist; or a model
            of another kind.
    """
    check_model(model)
    options = loading_options(options)
    if isinstance(model, TextEncoder):
        if options:
            raise InputError(
                f"{', '.join(options)}: of no use beside a model that is loaded; give its name, or "
                "say it to pyenc.load"
            )
        return model
    return load(model, **options)


def prompt_of(recipe: Recipe, kind: str) -> dict[str, str]:
    """The option of `encode` that puts the checkpoint's prompt for queries or documents.

    A checkpoint that has prompts but none for this kind puts nothing, not its default one either,
    as `encode_query` of sentence-transformers does.

    Raises:
        InputError: the encoder was loaded for the other side's task.
    """
    for name in PROMPT_NAMES[kind]:
        if name in recipe.prompts:
            return {"prompt_name": name}
    check_side(kind, recipe)
    return {"prompt": ""}


def embed(
    encoder: TextEncoder, kind: str | None, texts: Sequence[str], options: Mapping[str, Any] | None
) -> np.ndarray:
    """(len(texts), dim), float32 if nothing else is said, with the checkpoint's prompt for their
    kind.

    Args:
        encoder: who embeds.
        kind: "query" or "document"; None: with its default prompt, if it has one.
        texts: any number.
        options: keyword arguments of `TextEncoder.encode`; one that says what is put before a text
            is put in the place of the checkpoint's.

    Raises:
        InputTypeError: one string in the place of many, or something else that is no list of
            strings; the message names what.
        InputError: `options` asks for token vectors, or for bytes without their ranges; or the
            encoder was loaded for the other side's task.
    """
    given = {"progress": False, **(options or {})}
    if given.get("output", "pooled") != "pooled":
        raise InputError(
            f"output={given['output']!r}: these are vectors of whole texts; TextEncoder.encode "
            "gives those of tokens"
        )
    unsaid = all(given.get(name) is None for name in ("ranges", "calibration"))
    if unsaid and given.get("precision") in RANGED:
        raise InputError(
            f"precision={given['precision']!r} needs ranges= or calibration= here: taken from the "
            "texts of each call, vectors of two calls could not be compared"
        )
    if kind is not None and not any(given.get(name) is not None for name in BEFORE):
        given |= prompt_of(encoder.recipe, kind)
    vectors: np.ndarray | Tensor = encoder.encode(_strings(texts), **given)
    return vectors.cpu().numpy() if isinstance(vectors, Tensor) else vectors


def _strings(texts: Any) -> list[str]:
    """As a list: one string would be taken for its characters, and pairs for instructions."""
    check_many(texts, "texts must be a list of strings")
    listed = list(texts)
    for index, text in enumerate(listed):
        if not isinstance(text, str):
            raise InputTypeError(
                f"text {index} is {text!r:.40} ({type(text).__name__}), expected a string"
            )
    return listed
