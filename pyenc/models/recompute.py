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


class Recomputing(nn.Module):
    """Of an encoder, under the names that transformers' models have."""

    layers: nn.ModuleList
    position_bias: nn.Module | None
    _recompute: Recompute | None = None

    def gradient_checkpointing_enable(
        self,
        gradient_checkpointing_kwargs: Mapping[str, Any] | None = None,
        *,
        every_n_layers: int = 1,
        offload: bool = False,
    ) -> None:
        """From now on, in training, layers keep what they are given alone; the backward computes
        them a second time.

        The gradients are the same to the bit, dropout too. What is kept of a layer falls to (T, C),
        under pre-norm twice that, for the time of one more forward. As in transformers, whose name
        it has, it counts in training mode alone (`train()`).

        Args:
            gradient_checkpointing_kwargs: options of `torch.utils.checkpoint.checkpoint`;
                `use_reentrant` is False.
            every_n_layers: only the first of every so many layers; the others are kept.
            offload: not served.

        Raises:
            InputError: an option is unknown or cannot be had.
        """
        self._recompute = recompute_of(
            gradient_checkpointing_kwargs, every_n_layers, offload, self.layers, self.position_bias
        )

    def gradient_checkpointing_disable(self) -> None:
        """Layers keep again what their backward reads."""
        self._recompute = None

    @property
    def is_gradient_checkpointing(self) -> bool:
        return self._recompute is not None


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
