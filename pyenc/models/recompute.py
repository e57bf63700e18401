"""Gradient checkpointing: what a layer made on its way is not kept, but made again in the backward.

Chen et al., "Training Deep Nets with Sublinear Memory Cost" (arXiv 1604.06174), by
`torch.utils.checkpoint`.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import nn
from torch.nn.modules.dropout import _DropoutNd
from torch.utils.checkpoint import checkpoint

from ..errors import InputError, InputTypeError

STATE = "preserve_rng_state"
KNOWN = (frozenset(inspect.signature(checkpoint).parameters) | {STATE}) - {
    "function", "args", "kwargs"
}  # fmt: skip
"""Options of `torch.utils.checkpoint.checkpoint`."""


@dataclass(frozen=True)
class Recompute:
    """Which layers are computed again, and how."""

    options: tuple[tuple[str, Any], ...] = ()
    every: int = 1

    def __call__(self, index: int, layer: nn.Module, *given: Any, call: Any) -> Any:
        """What the layer at a place answers."""
        # What is no tensor is bound, so that a compiled graph has tensors for its arguments alone.
        bound = partial(layer, call=call)
        if index % self.every:
            return bound(*given)
        if dict(self.options).get(STATE) is False:
            _check_kept(layer, call.bias)  # what it drops may have been set since
        return checkpoint(bound, *given, use_reentrant=False, **dict(self.options))


def recompute_of(
    options: Mapping[str, Any] | None, every_n_layers: int, offload: bool, *parts: Any
) -> Recompute:
    """What `gradient_checkpointing_enable` was asked for, of an encoder's layers and what they
    have in common.

    Raises:
        InputError: an option is unknown or cannot be had; the message names it.
        InputTypeError: what should hold the options is no mapping.
    """
    if options is not None and not isinstance(options, Mapping):
        raise InputTypeError(
            "gradient_checkpointing_kwargs must be a mapping of options or None, got "
            f"{type(options).__name__} {options!r:.80}"
        )
    said = dict(options or {})
    if strange := sorted(map(str, said.keys() - KNOWN)):
        raise InputError(
            f"gradient_checkpointing_kwargs: unknown {strange[0]!r}; "
            f"torch.utils.checkpoint.checkpoint has: {', '.join(sorted(KNOWN))}"
        )
    if said.pop("use_reentrant", False):
        raise InputError(
            "gradient_checkpointing_kwargs: use_reentrant=True is not served (torch.autograd.grad "
            "and what the layers share are beyond it); use_reentrant=False is"
        )
    if not said.get(STATE, True):
        said[STATE] = False
        _check_kept(*parts)
    if type(every_n_layers) is not int or every_n_layers < 1:
        raise InputError(f"every_n_layers must be a positive integer, got {every_n_layers!r}")
    if offload:
        raise InputError(
            "offload=True is not served: torch.autograd.graph.save_on_cpu() around the forward "
            "moves what is kept"
        )
    return Recompute(tuple(sorted(said.items())), every_n_layers)


def _check_kept(*parts: Any) -> None:
    """Of modules, and what is none, nothing is dropped, now that what is drawn is not drawn again.

    Raises:
        InputError: something is.
    """
    if any(_drops(m) for part in parts if isinstance(part, nn.Module) for m in part.modules()):
        raise InputError(
            f"gradient_checkpointing_kwargs: {STATE}=False goes with an encoder without dropout: "
            "what is computed again would be dropped elsewhere, and the gradients be wrong"
        )


def _drops(module: nn.Module) -> bool:
    """Whether a module is one of torch's dropouts, or has a number for one, that is not zero."""
    p = getattr(module, "p" if isinstance(module, _DropoutNd) else "dropout", 0)
    return isinstance(p, int | float) and p > 0
