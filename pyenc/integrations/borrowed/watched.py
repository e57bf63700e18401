"""What a model was made of when an encoder was put on it, and whether that is so still.

It is asked at every call, so each question is one pass of Python's own over a flat list.
"""

from __future__ import annotations

import copy
import operator
from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

from ...models.meta import on_meta
from .refusals import Refused

PLAIN = (bool, int, float, str, type(None))
SAID = (*PLAIN, list, tuple)
"""Values of a config that are watched, lists (`layer_types`) as objects."""

OF_TORCH = frozenset(vars(nn.Module()))
"""What every module has: tables, which are looked into, and `training`, which is asked for."""

BESIDE = frozenset({
    "gradient_checkpointing", "name_or_path", "warnings_issued",
    "layer_idx",  # where a cache keeps a decoder's keys; layers may be left out, or be one
    "max_seq_len_cached",  # rotary tables, as long as a text was
    "in_features", "out_features", "num_embeddings", "embedding_dim", "vocab_size",  # tables say it
    "inplace", "scale_grad_by_freq", "sparse",
    "p",  # dropout, which is asked for at every call, as whatever is called so
})  # fmt: skip
"""Numbers of modules that decide no state."""

_dtype = operator.attrgetter("dtype")
_version = operator.attrgetter("_version")


class Watched:
    """The objects, tables, shapes and numbers that decide what a model computes.

    Parameters are changed in place, by an optimizer or `.to`, without a difference here; a table
    that was resized is often the same object, with another shape. Other tensors (rotary
    frequencies) decide by their numbers: a write to them counts, but for one through `.data`.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self._tables: list[dict[str, Any]] = []
        found: list[tuple[dict[str, Any], str, Any]] = []
        for module in model.modules():
            self._tables += (module._modules, module._parameters)  # type: ignore[list-item]
            for table in (module._modules, module._parameters, module._buffers):
                found += ((table, name, part) for name, part in table.items())  # type: ignore[misc]
            found += ((vars(module), name, value) for name, value in deciding(module))
        # Some of what a config says is read anew whenever the model is called, and so is what it
        # comes to say (`is_causal`).
        for said in configs(model):
            self._tables.append(said)
            found += ((said, key, value) for key, value in said.items() if isinstance(value, SAID))
        self._lengths = list(map(len, self._tables))
        self._places = [table for table, _, _ in found]
        self._names = [name for _, name, _ in found]
        self._parts = [part for _, _, part in found]
        self._modules = list(model.modules())
        self._kinds = list(map(type, self._modules))
        # Of these the encoder has no part: what they say it computes itself.
        self._constants = [part for part in self._parts if _is_constant(part)]
        self._versions = list(map(_version, self._constants))
        self._parameters = list(model.parameters())
        self._sizes = list(map(Tensor.size, self._parameters))
        self._dtypes = list(map(_dtype, self._parameters))

    def changed(self, model: nn.Module) -> bool:
        """Whether it is another, or something of it is another object than it was, or has another
        shape or dtype, or a constant of it was written to."""
        return not (
            model is self.model
            and all(map(operator.is_, map(dict.get, self._places, self._names), self._parts))
            and list(map(len, self._tables)) == self._lengths
            and list(map(type, self._modules)) == self._kinds
            and list(map(Tensor.size, self._parameters)) == self._sizes
            and list(map(_dtype, self._parameters)) == self._dtypes
            and list(map(_version, self._constants)) == self._versions
        )


def _is_constant(part: Any) -> bool:
    """A buffer, or a tensor that a module merely has; of those that were made under inference mode
    torch counts no writes."""
    return (
        isinstance(part, Tensor) and not isinstance(part, nn.Parameter) and not part.is_inference()
    )


def configs(model: nn.Module) -> list[dict[str, Any]]:
    """What the configs say that a model and its modules hold: one, or copies of it."""
    held = (vars(module).get("config") for module in model.modules())
    said = {id(config): vars(config) for config in held if hasattr(config, "__dict__")}
    return list(said.values())


def deciding(module: nn.Module) -> Iterator[tuple[str, Any]]:
    """The numbers and functions of a module by name: `eps`, `scaling`, `is_causal`, `act`."""
    for name, value in vars(module).items():
        if (
            name not in OF_TORCH
            and name not in BESIDE
            and not name.startswith("_")
            and "dropout" not in name
            and (isinstance(value, (*PLAIN, Tensor)) or callable(value))
        ):
            yield name, value


def settings_of(model: nn.Module) -> Any:
    """A copy of a model's config, as it was when the model was made.

    A trainer of transformers writes the tokenizer's padding into the config; the table of words has
    the padding that it was made with, and goes on giving that no gradient.
    """
    settings: Any = copy.deepcopy(model.config)
    own = vars(model)
    if "padding_idx" in own and getattr(words_of(model), "padding_idx", ...) == own["padding_idx"]:
        settings.pad_token_id = own["padding_idx"]
    return settings


def words_of(model: Any) -> nn.Module | None:
    """A model's table of words; None of a class that does not say where it is."""
    try:
        found: nn.Module | None = model.get_input_embeddings()
    except (AttributeError, NotImplementedError):
        return None
    return found


def check_numbers(model: nn.Module) -> None:
    """The numbers of a model's modules are those that its config makes, as pyenc's encoder is made.

    Too small a difference to be seen in made-up texts is one in others.

    Raises:
        Refused: one is not; it is named.
    """
    kind: Any = type(model)
    try:
        with on_meta():
            made = kind(settings_of(model))
    except Exception:
        # A class of someone's own, made otherwise: of any kind, and its states are compared yet.
        return
    held = dict(model.named_modules())
    for path, right in made.named_modules():
        module = held.get(path)
        if module is None:
            continue
        for name, number in deciding(right):
            value = getattr(module, name, None)
            if not isinstance(number, PLAIN) or isinstance(value, nn.Module) or value is number:
                continue
            if isinstance(value, Tensor) or value != number:
                raise Refused(
                    f"{name} of its {path or kind.__name__} is {value!r:.40}, and its config says "
                    f"{number!r:.40}"
                )
