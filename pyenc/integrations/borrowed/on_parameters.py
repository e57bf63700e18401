"""An `Encoder` whose parameters are those of a transformers model: the same objects, held once.

What an optimizer, `load_state_dict` or `.to` does to the model's parameters is done to the
encoder's, and gradients come to the model's. Where a part of the model is exchanged for another,
resized, or given another number to compute with, `changed` says so.
"""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import nn
from torch.nn.modules import module as torch_module
from torch.utils.checkpoint import checkpoint

from ...errors import CheckpointError, InputError, UnknownArchitectureError
from ...models import Encoder, EncoderConfig
from ...models.families import ConfigFile, Family, Parts, recognise, rows_of
from ...models.meta import on_meta
from ...models.modules import Linear, SplitLinear
from .classes import own_arguments
from .handed import Answer
from .heads import Head, beneath
from .probe import check_same, evaluating, unrounded
from .refusals import Refused, check_hooks, check_parameters, check_unwrapped, interfered
from .spelling import as_in_files
from .watched import Watched, check_numbers, settings_of, words_of


class Borrowed:
    """An encoder on a model's parameters, and how to tell that they are still the model's.

    Args:
        whole: a model of transformers.
        has_head: whether the encoder is that of a model beneath its head.
        whole_answer: whether all that the model answers is wanted, not its states alone.

    Raises:
        Refused: pyenc has no encoder that computes the same.
    """

    def __init__(
        self, whole: nn.Module, *, has_head: bool = False, whole_answer: bool = False
    ) -> None:
        check_unwrapped(whole)
        self.whole = whole
        self.model = model = beneath(whole) if has_head else whole
        check_parameters(model)
        # A model that answers for itself is reached through whatever forward was set on it.
        self._passed_over = (*(() if whole_answer else (whole,)), *((model,) if has_head else ()))
        check_hooks(whole, model, self._passed_over)
        self.encoder = encoder_on(model)
        self._modules = [module for module in model.modules() if module is not model]
        self._own = any(module is self.encoder for module in self._modules)
        if not self._own:
            check_numbers(model)
        elif whole_answer:
            raise Refused(f"{type(whole).__name__} is pyenc's already")
        try:
            answer = check_same(model, self.encoder)
            self.answer = Answer(model, answer)
            if whole_answer and not has_head:  # which looks itself
                with torch.inference_mode(), evaluating(model), unrounded(self.encoder):
                    self.answer.check(answer)
        except Refused:
            raise
        except Exception as error:
            raise Refused(
                f"{type(model).__name__} cannot be run on two short texts: "
                f"{type(error).__name__}: {error}"
            ) from error
        self.head = Head(whole, model, self.encoder, answer) if has_head else None
        self.token_types = "token_type_ids" in own_arguments(model)
        self._watched = Watched(whole)
        self._drops = drops_of(model)
        table = words_of(model)
        row = getattr(table, "padding_idx", None)
        self.without_gradient = row if self.encoder.config.padding_row is None else None
        """The id whose row takes none in the model, as torch's tables have it; the encoder's row
        of that id would."""

    def changed(self, whole: nn.Module) -> bool:
        """Whether the model, or what decides in it what it computes, is not what it was."""
        return self._watched.changed(whole)

    def hooked(self) -> bool:
        """Whether something is to happen when one of the model's own modules is called."""
        return (
            torch_module._has_any_global_hook()
            or any("forward" in part.__dict__ for part in self._passed_over)
            # Hooks of what is beneath a head are run; compiled, it asks for no states.
            or (self.head is not None and self.model._compiled_call_impl is not None)
            or any(map(interfered, self._modules))
        )

    def serves(self) -> bool:
        """Set the encoder to training or not, as the model is.

        Returns:
            False where the model's own code is run instead: with dropout, so that a seeded run
            draws what it always drew, or with gradient checkpointing that pyenc's encoder has not.
        """
        encoder, training = self.encoder, self.model.training
        if training and self.dropout:
            return False
        # Set by hand since, or kept on in `eval` (Monte Carlo dropout).
        if any(module.training and getattr(module, name, 0) for module, name in self._drops):
            return False
        if self._own:
            return True
        if encoder.training != training:
            encoder.train(training)
        if training:
            try:
                asked = checkpointing_of(self.model)
                if asked is None:
                    encoder.gradient_checkpointing_disable()
                else:
                    encoder.gradient_checkpointing_enable(asked)
            except InputError:
                return False
        return True

    @property
    def dropout(self) -> bool:
        """Whether it has any, in training."""
        return self.encoder.config.drops


def checkpointing_of(model: nn.Module) -> dict[str, Any] | None:
    """The options of a transformers model's gradient checkpointing, None without it.

    Raises:
        InputError: it is not the same for all layers, or another function's than torch's.
    """
    layers: list[Any] = [m for m in model.modules() if hasattr(m, "gradient_checkpointing")]
    if not any(layer.gradient_checkpointing for layer in layers):
        return None
    functions = [getattr(layer, "_gradient_checkpointing_func", None) for layer in layers]
    options = dict(getattr(functions[0], "keywords", {}))
    for layer, function in zip(layers, functions, strict=True):
        if (
            not layer.gradient_checkpointing
            or getattr(function, "func", function) is not checkpoint
            or getattr(function, "keywords", {}) != options
        ):
            raise InputError("only torch's checkpoint, of every layer alike, is served")
    return options


def drops_of(model: nn.Module) -> list[tuple[nn.Module, str]]:
    """The modules of a model that may drop something where they are in training, and what says how
    much: `p` of torch's own, and numbers that attention hands on."""
    found: list[tuple[nn.Module, str]] = []
    for module in model.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd):
            found.append((module, "p"))
        found += [
            (module, name)
            for name, value in vars(module).items()
            if "dropout" in name and isinstance(value, float | int)
        ]
    return found


def encoder_on(model: nn.Module) -> Encoder:
    """The encoder that a model's config and parameter names describe, on those parameters.

    Raises:
        Refused: no family has these names, or it has others besides.
    """
    own = [module for module in model.modules() if isinstance(module, Encoder)]
    if own:  # one of pyenc's own models, as transformers' classes
        return own[0]
    config = ConfigFile("its config", _said(settings_of(model)))
    parameters = dict(model.named_parameters(remove_duplicate=False))
    known = as_in_files(parameters, config.values.get("model_type"))
    try:
        family, prefix = recognise(known, config)
        bare = frozenset(name.removeprefix(prefix) for name in known)
        shape = family.shape(config, bare)
        parts = family.parts(shape, bare)
    except UnknownArchitectureError as error:
        kind = type(model).__name__
        raise Refused(f"pyenc knows no family of encoders that {kind} is: {error}") from error
    except (InputError, CheckpointError) as error:
        raise Refused(str(error)) from error
    if shape.rotary is not None and shape.rotary.dynamic_factor is not None:
        raise Refused("its rotary positions are scaled by the width of a batch")
    if any(family.row_order(shape, parameter) is not None for parameter in parts):
        raise Refused(
            f"the rows of {family.name}'s weights are in another order than pyenc's, so the two "
            "cannot share them; pyenc.load(name) reads them into its own"
        )
    sources = {p: tuple(prefix + name for name in names) for p, names in parts.items()}
    _check_names(model, parameters, known, sources, family, prefix)
    held = {p: tuple(m for name in names for m in known[name]) for p, names in sources.items()}
    return _assembled(shape, held, parameters)


def _said(settings: Any) -> dict[str, Any]:
    """A model's config as its file has it."""
    said: dict[str, Any] = settings.to_dict()
    if said.get("model_type") == "gemma3_text" and said.get("use_bidirectional_attention"):
        # Halved when it is read, and one more; not every version writes what it has read.
        said["sliding_window"] = 2 * (settings.sliding_window - 1)
    return said


def _check_names(
    model: nn.Module,
    parameters: dict[str, nn.Parameter],
    known: dict[str, tuple[str, ...]],
    sources: Parts,
    family: Family,
    prefix: str,
) -> None:
    """Every parameter is one of the family's, and the other way round."""
    used = {name for names in sources.values() for name in names}
    for name in sorted(known.keys() - used):
        if re.match(family.unused, name.removeprefix(prefix)):
            continue
        first = family.same.get(name.removeprefix(prefix))
        if first is None or prefix + first not in known:
            raise Refused(
                f"{type(model).__name__} has {name}, which {family.name} has not: adapters, or "
                "transformers took it for another model than it is (pyenc.load does not)"
            )
        if parameters[name] is not parameters[prefix + first]:
            raise Refused(
                f"{name} and {prefix + first} are no longer tied: one weight by two names"
            )
    if missing := sorted(used - known.keys()):
        raise Refused(f"{type(model).__name__} lacks {missing[0]}, which {family.name} has")


def _assembled(shape: EncoderConfig, held: Parts, parameters: dict[str, nn.Parameter]) -> Encoder:
    with on_meta():
        encoder = Encoder(shape)
    expected = {name: tuple(p.shape) for name, p in encoder.named_parameters()}
    for ours, theirs in held.items():
        whole, *rest = expected[ours]
        for name, rows in zip(theirs, rows_of(shape, ours, whole, len(theirs)), strict=True):
            right = (rows, *rest)
            if tuple(parameters[name].shape) != right:
                raise Refused(
                    f"{name} has shape {tuple(parameters[name].shape)}, but its config asks for "
                    f"{right}"
                )
        path, _, leaf = ours.rpartition(".")
        if len(theirs) == 1:
            setattr(encoder.get_submodule(path), leaf, parameters[theirs[0]])
        elif leaf == "weight":
            biases = held.get(f"{path}.bias", (None,) * len(theirs))
            linears = [
                _linear(parameters[w], None if b is None else parameters[b])
                for w, b in zip(theirs, biases, strict=True)
            ]
            encoder.set_submodule(path, SplitLinear(linears))
    lost = [name for name, p in encoder.named_parameters() if p.device.type == "meta"]
    assert not lost, lost
    return encoder.eval()


def _linear(weight: nn.Parameter, bias: nn.Parameter | None) -> Linear:
    with on_meta():
        linear = Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
    linear.weight = weight
    if bias is not None:
        linear.bias = bias
    return linear
