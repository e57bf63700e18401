"""What `TextEncoder.encode` is given, looked at before anything is computed."""

from __future__ import annotations

import operator
import warnings
from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..callers import stacklevel
from ..errors import InputError, InputTypeError
from .recipe import UNSAID_PROMPTS, Recipe
from .tokenizer import surrogate_in

Texts = tuple[list[str], list[str] | None]
"""The texts, and the instruction of each where they came as pairs."""


def whole(name: str, value: Any) -> int:
    """A whole number of any kind (numpy's too), or an error that names the option."""
    try:
        if isinstance(value, bool):
            raise TypeError
        return operator.index(value)
    except TypeError:
        raise InputError(f"{name} must be a whole number, got {value!r}") from None


def flag(name: str, value: Any) -> bool:
    """True or False, numpy's too, or an error that names the option: "no" would be taken for True
    by its truth."""
    if not isinstance(value, (bool, np.bool_)):
        raise InputTypeError(f"{name} must be True or False, got {value!r:.40}")
    return bool(value)


def flag_or_none(name: str, value: Any) -> bool | None:
    """The same, or None: as by default."""
    if value is not None and not isinstance(value, (bool, np.bool_)):
        raise InputTypeError(f"{name} must be True, False or None, got {value!r:.40}")
    return None if value is None else bool(value)


def check_many(values: Any, wanted: str) -> None:
    """Many texts, whose order is that of the vectors: no mapping, set or table, which are iterable
    too, over keys, in any order, or over the names of columns.

    Args:
        values: what was given.
        wanted: the beginning of the message: what it is and must be.

    Raises:
        InputTypeError: it is something else; the message says what to give.
    """
    kind = type(values).__name__
    if isinstance(values, (str, bytes, Mapping)) or not isinstance(values, Iterable):
        raise InputTypeError(f"{wanted}, got {kind}")
    if isinstance(values, (set, frozenset)):
        raise InputTypeError(f"{wanted}, got {kind}, whose order is arbitrary; a list has one")
    dimensions = getattr(values, "ndim", None)
    if isinstance(dimensions, int) and dimensions > 1:
        raise InputTypeError(
            f"{wanted}, got {kind} of {dimensions} dimensions"
            + ("; give one column, such as frame['text']" if hasattr(values, "columns") else "")
            + ("; .tolist() makes a list of it" if hasattr(values, "tolist") else "")
        )


def checked_texts(texts: Any, first: int = 0) -> Texts:
    """The texts as a list, and the instructions of `[instruction, text]` pairs.

    Args:
        texts: of `TextEncoder.encode`.
        first: the number of the first, for messages.

    Raises:
        InputTypeError: something among them is neither a string nor, where there are pairs, a pair
            of strings; the message names it.
        InputError: an instruction is not valid Unicode.
    """
    if isinstance(texts, str):
        return [texts], None
    check_many(texts, "texts must be a string or an iterable of strings")
    try:
        listed = list(texts)
    except TypeError as error:  # a numpy array of no dimension calls itself iterable
        raise InputTypeError(f"texts must be a string or an iterable of them: {error}") from error
    if listed and isinstance(listed[0], (list, tuple)):
        return _checked_pairs(listed, first)
    for index, text in enumerate(listed, first):
        if not isinstance(text, str):
            strings = index > first and isinstance(text, (list, tuple))
            raise InputTypeError(
                f"text {index} is {text!r:.40} ({type(text).__name__}), expected a string"
                + (", as those before it: pairs and plain texts do not mix" if strings else "")
                + ("; .to_pylist() makes a list of strings" if hasattr(text, "as_py") else "")
            )
    return listed, None


def _checked_pairs(pairs: list[Any], first: int) -> Texts:
    seen: set[str] = set()
    for index, pair in enumerate(pairs, first):
        if not isinstance(pair, (list, tuple)):
            raise InputTypeError(
                f"text {index} is {pair!r:.40} ({type(pair).__name__}) among [instruction, text] "
                "pairs, expected a pair; with an empty instruction for a text that has none"
            )
        if len(pair) != 2:
            raise InputTypeError(
                f"text {index} is {pair!r:.40} ({type(pair).__name__} of {len(pair)}), expected an "
                "[instruction, text] pair"
            )
        for what, part in zip(("instruction", "text"), pair, strict=True):
            if not isinstance(part, str):
                raise InputTypeError(
                    f"the {what} of pair {index} is {part!r:.40} ({type(part).__name__}), expected "
                    "a string"
                )
        if pair[0] not in seen and (fault := surrogate_in(pair[0])) is not None:
            raise InputError(f"the instruction of pair {index} is not valid Unicode: {fault}")
        seen.add(pair[0])
    return [text for _, text in pairs], [instruction for instruction, _ in pairs]


@dataclass(frozen=True)
class Before:
    """What is put before texts: the instructions of each, one for all, or a prompt."""

    instructions: list[str] | None = None
    instruction: str | None = None
    prompt: str = ""


def checked_before(
    instructions: list[str] | None,
    instruction: Any,
    prompt: Any,
    prompt_name: Any,
    recipe: Recipe,
    *,
    task: str | None = None,
    adapters: Container[str] = (),
) -> Before:
    """What the pairs bring, the call asks for, or the recipe says, in that order.

    Where nothing is given, a `task` ("query", "document") takes the prompt of that name, and no
    prompt where the checkpoint has none: neither its default one nor one of another name. That is
    what sentence-transformers 6.2.0 does, whose models always have a "query" and a "document"; so
    a `prompt_name` of one of these is known to every checkpoint too, and empty where none is said.
    `adapters`: the tasks that the checkpoint has some for, which a warning tells of.

    Raises:
        InputError: more than one is given, one beside pairs, one is not valid Unicode, or the name
            is unknown.
        InputTypeError: one is not a string.
    """
    given = {"instruction": instruction, "prompt": prompt, "prompt_name": prompt_name}
    set_ones = [name for name, value in given.items() if value is not None]
    if instructions is not None and set_ones:
        raise InputError(
            f"{set_ones[0]} is given, and [instruction, text] pairs, which bring their own; give "
            "one of the two"
        )
    if len(set_ones) > 1:
        raise InputError(f"give one of {' and '.join(set_ones)}, not both")
    for name in set_ones:
        if not isinstance(given[name], str):
            raise InputTypeError(f"{name} must be a string, got {type(given[name]).__name__}")
        if (fault := surrogate_in(str(given[name]))) is not None:
            raise InputError(f"{name} is not valid Unicode: {fault}")
    if instructions is not None or instruction is not None:
        return Before(instructions, instruction)
    if not set_ones and task is not None:
        return Before(prompt=_prompt_of(task, recipe, adapters))
    if prompt is None:
        if prompt_name is None:
            prompt_name = recipe.default_prompt_name
        if prompt_name is None:
            return Before()
        if prompt_name in UNSAID_PROMPTS:
            return Before(prompt=_prompt_of(prompt_name, recipe, adapters))
        if prompt_name not in recipe.prompts:
            raise InputError(
                f"prompt_name {prompt_name!r} is unknown; this checkpoint has: "
                f"{', '.join(recipe.prompts) or 'none'}"
            )
        prompt = recipe.prompts[prompt_name]
    return Before(prompt=prompt)


OTHER_NAMES = {
    "query": ("retrieval.query",),
    "document": ("passage", "corpus", "retrieval.passage"),
}
"""What checkpoints also call the prompt of a task."""

THIS_SIDE = {"query": "retrieval.query", "document": "retrieval.passage"}
OTHER_SIDE = {"query": "retrieval.passage", "document": "retrieval.query"}
"""The tasks of jina-embeddings-v3 that a text of either kind goes with, and does not."""


class PromptWarning(UserWarning):
    """A checkpoint has a prompt that looks meant for the task, and that does not serve it."""


def check_side(task: str, recipe: Recipe) -> None:
    """Refuses queries of an encoder of documents, and documents of one of queries."""
    if task not in recipe.prompts and recipe.default_prompt_name == OTHER_SIDE[task]:
        raise InputError(
            f"this encoder is of the task {recipe.default_prompt_name!r}, and not for a {task}: "
            f"that is pyenc.load(..., task={THIS_SIDE[task]!r}) of the checkpoint with the adapters"
        )


def _prompt_of(task: str, recipe: Recipe, adapters: Container[str]) -> str:
    check_side(task, recipe)
    if task not in recipe.prompts:
        for name in OTHER_NAMES[task]:
            if recipe.prompts.get(name):
                adapter = f" (its adapter too: task={name!r} of pyenc.load)"
                message = (
                    f"this checkpoint has no prompt {task!r}, so none is put before the texts, as "
                    f"in sentence-transformers; it has {name!r}, and prompt_name={name!r} asks for "
                    f"that{adapter if name in adapters else ''}"
                )
                warnings.warn(PromptWarning(message), stacklevel=stacklevel())
                break
    return recipe.prompts.get(task, "")
