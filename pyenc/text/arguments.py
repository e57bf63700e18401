"""What `TextEncoder.encode` is given, looked at before anything is computed."""

from __future__ import annotations

import operator
from collections.abc import Iterable
from typing import Any

from ..errors import InputError, InputTypeError
from .recipe import Recipe
from .tokenizer import TextTokenizer, surrogate_in


def whole(name: str, value: Any) -> int:
    """A whole number of any kind (numpy's too), or an error that names the option."""
    try:
        if isinstance(value, bool):
            raise TypeError
        return operator.index(value)
    except TypeError:
        raise InputError(f"{name} must be a whole number, got {value!r}") from None


def checked_texts(texts: Any) -> list[str]:
    """The texts as a list, or an error that names what among them is none."""
    if isinstance(texts, str):
        return [texts]
    if isinstance(texts, (bytes, dict)) or not isinstance(texts, Iterable):
        raise InputTypeError(
            f"texts must be a string or an iterable of strings, got {type(texts).__name__}"
        )
    try:
        listed = list(texts)
    except TypeError as error:  # a numpy array of no dimension calls itself iterable
        raise InputTypeError(f"texts must be a string or an iterable of them: {error}") from error
    for index, text in enumerate(listed):
        if not isinstance(text, str):
            raise InputTypeError(
                f"text {index} is {text!r:.40} ({type(text).__name__}), expected a string"
            )
    return listed


def text_before(
    instruction: str | None,
    prompt: str | None,
    prompt_name: str | None,
    recipe: Recipe,
    tokenizer: TextTokenizer,
) -> tuple[str, int]:
    """What is put before each text, and how many of its tokens the mean leaves out.

    Raises:
        InputError: more than one is given, one is not valid Unicode, or the name is unknown.
        InputTypeError: one is not a string.
    """
    given = {"instruction": instruction, "prompt": prompt, "prompt_name": prompt_name}
    set_ones = [name for name, value in given.items() if value is not None]
    if len(set_ones) > 1:
        raise InputError(f"give one of {' and '.join(set_ones)}, not both")
    for name in set_ones:
        if not isinstance(given[name], str):
            raise InputTypeError(f"{name} must be a string, got {type(given[name]).__name__}")
        if (fault := surrogate_in(str(given[name]))) is not None:
            raise InputError(f"{name} is not valid Unicode: {fault}")
    if instruction is not None:
        return instruction, tokenizer.prompt_length(instruction) if instruction else 0
    if prompt is None:
        prompt_name = prompt_name or recipe.default_prompt_name
        if prompt_name is None:
            return "", 0
        if prompt_name not in recipe.prompts:
            raise InputError(
                f"prompt_name {prompt_name!r} is unknown; this checkpoint has: "
                f"{', '.join(recipe.prompts) or 'none'}"
            )
        prompt = recipe.prompts[prompt_name]
    skip = prompt and not recipe.include_prompt
    return prompt, tokenizer.prompt_length(prompt) if skip else 0
