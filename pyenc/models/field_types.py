"""What stands in the fields of a config, held against their annotations: a switch that is "no"
would be taken for yes, an unknown norm for the other one."""

from __future__ import annotations

import types
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from ..errors import InputError, InputTypeError

WORDS: dict[Any, tuple[str, str, tuple[type, ...]]] = {
    int: ("a whole number", "whole numbers", (int,)),
    float: ("a number", "numbers", (int, float)),
    bool: ("True or False", "True or False", (bool,)),
    str: ("a string", "strings", (str,)),
}
"""One of them and several, in words, and what may stand there."""


def check_types(config: Any) -> None:
    """Look at every field of a frozen dataclass; what is a tuple there may be given as a list.

    Raises:
        InputTypeError: a field is of another type than its annotation says.
        InputError: it is none of the values that its annotation lists.
    """
    kind: type[object] = type(config)
    for name, hint in _hints(kind).items():
        value = getattr(config, name)
        if get_origin(hint) in (Union, types.UnionType):
            if value is None:
                continue
            (hint,) = (x for x in get_args(hint) if x is not type(None))
        if get_origin(hint) is tuple and isinstance(value, list):
            value = tuple(value)
            object.__setattr__(config, name, value)
        if not _fits(value, hint):
            error = InputError if get_origin(hint) is Literal else InputTypeError
            raise error(f"{kind.__name__}: {name} must be {_in_words(hint)}, got {value!r:.80}")


_known: dict[type, dict[str, Any]] = {}


def _hints(kind: type) -> dict[str, Any]:
    if kind not in _known:
        _known[kind] = get_type_hints(kind)
    return _known[kind]


def _fits(value: Any, hint: Any) -> bool:
    if hint is Any:
        return True
    if get_origin(hint) is Literal:
        return isinstance(value, str) and value in get_args(hint)
    if get_origin(hint) is tuple:
        return isinstance(value, tuple) and all(_fits(x, get_args(hint)[0]) for x in value)
    if hint not in WORDS:
        return isinstance(value, hint)
    return isinstance(value, WORDS[hint][2]) and not (isinstance(value, bool) and hint is not bool)


def _in_words(hint: Any) -> str:
    if get_origin(hint) is Literal:
        return " or ".join(f'"{x}"' for x in get_args(hint))
    if get_origin(hint) is tuple:
        return f"a tuple of {WORDS[get_args(hint)[0]][1]}"
    if hint in WORDS:
        return WORDS[hint][0]
    return f"a pyenc.models.{hint.__name__}"
