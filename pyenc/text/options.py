"""What one call of `encode` asks for: the words as they were given, and what they come to."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from ..errors import InputError
from .arguments import Before, checked_before, flag_or_none, whole
from .batching import BATCH_TOKENS
from .finish import Finish, checked_finish
from .limits import checked_limit
from .loaded import Loaded
from .precision import Precision, checked_precision


@dataclass(frozen=True, kw_only=True)
class Options:
    """The keywords of `encode`, which explains them, but for `devices`."""

    instruction: Any = None
    prompt: Any = None
    prompt_name: Any = None
    batch_tokens: Any = None
    max_length: Any = None
    on_long: Any = "truncate"
    normalize: Any = None
    truncate_dim: Any = None
    layer_norm: Any = False
    output: Any = "pooled"
    precision: Any = "float32"
    ranges: Any = None
    calibration: Any = None
    progress: Any = None
    convert_to_tensor: Any = False


FLAGS = ("normalize", "progress", "convert_to_tensor")
"""Which of them are on, off, or None: as by default. `checked_finish` looks at `layer_norm`."""


@dataclass(frozen=True)
class Call:
    """The same, looked at: nothing in it is wrong any more."""

    options: Options
    limit: int
    """Tokens of a text at the most."""
    finish: Finish
    batch_tokens: int
    precision: Precision
    task: str | None = None
    """ "query" or "document", whose prompt serves where none is given."""

    @property
    def output(self) -> str:
        return str(self.options.output)

    def before(self, instructions: list[str] | None, encoder: Loaded) -> Before:
        """What is put before texts, which may have brought instructions of their own."""
        given = self.options
        return checked_before(
            instructions, given.instruction, given.prompt, given.prompt_name, encoder.recipe,
            task=self.task, adapters=encoder.checkpoint.task_instructions,
        )  # fmt: skip


def checked_call(encoder: Loaded, options: Options, task: str | None = None) -> Call:
    """What the options come to, on this checkpoint.

    Raises:
        InputError: one has the wrong value, or two do not go together.
        InputTypeError: one that is on or off is neither.
    """
    flags = {name: flag_or_none(name, getattr(options, name)) for name in FLAGS}
    options = replace(options, **flags)
    limit = encoder.max_length
    if options.max_length is not None:
        limit = checked_limit(options.max_length, encoder.tokenizer, encoder.model.config)
    check_on_long(options.on_long)
    output = options.output
    if output not in ("pooled", "tokens"):
        raise InputError(f'output must be "pooled" or "tokens", got {output!r}')
    if options.convert_to_tensor and output != "pooled":
        raise InputError(
            f'convert_to_tensor is of pooled vectors, not of output="{output}", whose arrays '
            "torch.from_numpy takes"
        )
    finish = checked_finish(
        encoder.recipe,
        # Token states have not been through the dense layers.
        width=encoder.dim if output == "pooled" else encoder.model.config.hidden_size,
        output=output, truncate_dim=options.truncate_dim, normalize=options.normalize,
        layer_norm=options.layer_norm,
    )  # fmt: skip
    precision = checked_precision(
        options.precision, options.ranges, options.calibration, dim=finish.dim, output=output
    )
    budget = budget_of(options.batch_tokens, encoder)
    return Call(options, limit, finish, budget, precision, task)


def check_on_long(on_long: Any) -> None:
    if on_long not in ("truncate", "error"):
        raise InputError(f'on_long must be "truncate" or "error", got {on_long!r}')


def budget_of(batch_tokens: Any, encoder: Loaded) -> int:
    """Tokens of a batch at the most: those asked for, else by device."""
    if batch_tokens is None:
        return BATCH_TOKENS.get(encoder.device.type, BATCH_TOKENS["cuda"])
    budget = whole("batch_tokens", batch_tokens)
    if budget < 1:
        raise InputError(f"batch_tokens must be at least 1, got {budget}")
    return budget
