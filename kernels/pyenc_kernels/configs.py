"""Tile sizes of the kernels: data (configs.json), by card, kernel, dtype and shape.

A card without an entry takes its architecture's, then the defaults; of the shapes that an entry
has, the nearest serves. A kernel may have entries of its own for what it is specialised to,
"kernel/variant", before those of all its forms. Nothing is tuned at a call: `pyenc bench tune`
writes entries.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
import math
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

import torch

from . import interpreting

FILE = Path(__file__).with_name("configs.json")


FUSED = {"enable_fp_fusion": True}
"""Of every launch: a product and a sum are one multiply-add, whatever Triton's default is."""


@dataclass(frozen=True)
class Config:
    """Rows and columns of a block, warps of a program, stages of its pipeline; registers that a
    thread may have at the most, which NVIDIA's compiler alone can be told.

    Of attention's forward also: whether what is subtracted before the power stands still beyond the
    first tiles; whether the numbers of keys that an affine bias has come out of the matrix units.
    """

    block_m: int
    block_n: int
    num_warps: int
    num_stages: int
    maxnreg: int | None = None
    fixed_shift: bool = False
    columns_in_product: bool = False

    def block(self, width: int, *, whole: bool = False) -> tuple[int, int]:
        """(rows, columns) of a block of as many elements that is no wider than the width needs;
        whole: and holds all of it."""
        columns = 1 << max(width - 1, 15).bit_length()
        if not whole:
            columns = min(columns, self.block_n)
        return max(self.block_m * self.block_n // columns, 1), columns

    @functools.cached_property
    def key(self) -> tuple[int | None, ...]:
        """Its numbers, to look things up by."""
        return astuple(self)

    @property
    def launch(self) -> dict[str, int]:
        launch = {"num_warps": self.num_warps, "num_stages": self.num_stages, **FUSED}
        return launch if self.maxnreg is None else launch | {"maxnreg": self.maxnreg}

    @property
    def numbers(self) -> list[int | None]:
        """As configs.json has it: without the last ones where those are nothing."""
        numbers = list(self.key)
        while not numbers[-1]:
            numbers.pop()
        return numbers


@functools.cache
def table() -> dict[str, Any]:
    """configs.json: card, architecture or "default" -> kernel, or "kernel/variant" -> dtype, or
    "any" -> shape -> [rows, columns, warps, stages] and, on NVIDIA's, perhaps the most registers,
    null: as many as it takes; then `Config`'s others, true or false. A card also says which
    "architecture" it is of. "range_length" is `ranges_pay`'s, and "gated_linear_rows" that
    function's, of any of them.

    A shape is "width" or "widthxlength": head dim and tokens of an average sequence for attention,
    channels and the same for the segment mean, head dim and all tokens for the rotary embedding,
    columns and rows for the gated activation, alone and behind its linear layer, and the norms.
    """
    loaded: dict[str, Any] = json.loads(FILE.read_text("utf-8"))
    return loaded


@functools.cache
def keys_of(device: torch.device) -> tuple[str, ...]:
    """Where to look for a device, best first: its own entries, those of other cards of its
    architecture, the architecture's, the defaults."""
    if interpreting():
        return "interpreter", "default"  # which takes as long for a large block as for a small one
    if device.type != "cuda" or not torch.cuda.is_available():
        return ("default",)
    properties = torch.cuda.get_device_properties(device)
    architecture = f"sm_{properties.major}{properties.minor}"
    if torch.version.hip:
        architecture = properties.gcnArchName.split(":")[0]
    return of_card(properties.name, architecture)


def of_card(name: str, architecture: str) -> tuple[str, ...]:
    """`keys_of` a card."""
    alike = (
        card
        for card, entries in table().items()
        if card != name and entries.get("architecture") == architecture
    )
    return (name, *sorted(alike), architecture, "default")


@functools.cache
def multiprocessors(device: torch.device) -> int:
    """How many a device has; where there is none, two, so that programs have more than one tile."""
    if interpreting() or device.type != "cuda" or not torch.cuda.is_available():
        return 2
    return torch.cuda.get_device_properties(device).multi_processor_count


def ranges_pay(device: torch.device, n_tokens: int, n_sequences: int) -> bool:
    """Whether to look for the keys that a decaying bias leaves relevant: where sequences are on
    average at least as long as the device's "range_length". The passes that find out are a loss for
    shorter ones. Shapes alone tell, so that the same call is always computed in the same way."""
    return average_length(n_tokens, n_sequences) >= _range_length(keys_of(device))


_AVERAGE: ContextVar[float | None] = ContextVar("average", default=None)


@contextlib.contextmanager
def averaging(length: float) -> Iterator[None]:
    """For a while all calls have sequences of so many tokens on average, whatever their shapes say:
    a batch that was filled up to a shape is computed as what is in it would be."""
    token = _AVERAGE.set(length)
    try:
        yield
    finally:
        _AVERAGE.reset(token)


def average_length(n_tokens: int, n_sequences: int) -> float:
    """Tokens of a sequence, for choosing: by shapes, where `averaging` says nothing."""
    told = _AVERAGE.get()
    return n_tokens / max(n_sequences, 1) if told is None else told


def gated_linear_rows(device: torch.device) -> int | None:
    """Rows from which on the gated feed-forward's product and activation are one kernel without
    being asked for, of halves that need no gradient; None: never, as on every device until it has
    been measured to pay."""
    return _gated_linear_rows(keys_of(device))


@functools.cache
def _gated_linear_rows(keys: tuple[str, ...]) -> int | None:
    of = next(table()[key] for key in keys if "gated_linear_rows" in table().get(key, {}))
    least: int | None = of["gated_linear_rows"]
    return least


@functools.cache
def _range_length(keys: tuple[str, ...]) -> int:
    lengths = (table().get(key, {}).get("range_length") for key in keys)
    return next(length for length in lengths if length is not None)


def config_for(
    kernel: str, x: torch.Tensor, width: int, length: int, *, whole: bool = False,
    variant: str | None = None,
) -> Config:  # fmt: skip
    """Of a kernel for x, by its device, its dtype and a shape as `table` has them.

    whole: a block holds all of the width, so that no entry for a smaller one may serve. variant:
    what the kernel is specialised to, where that may have entries of its own.
    """
    # Lengths that round to one power of two share an entry, and a place in the cache.
    return _config_for(
        kernel, variant, _name(x.dtype), width, _power(length), keys_of(x.device), whole
    )


@functools.cache
def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


@functools.cache
def _config_for(
    kernel: str, variant: str | None, dtype: str, width: int, power: int, keys: tuple[str, ...],
    whole: bool,
) -> Config:  # fmt: skip
    return entry(kernel, dtype, width, 1 << power, keys, whole=whole, variant=variant)[1]


def entry(
    kernel: str, dtype: str, width: int, length: int, keys: tuple[str, ...], *, whole: bool = False,
    variant: str | None = None,
) -> tuple[str, Config]:  # fmt: skip
    """(its shape, itself): the nearest entry of the first key that has one for kernel and dtype,
    its variant's before that of all of them.

    Of widths the next larger one is the nearest, else, unless `whole`, the largest. Of its lengths
    the nearest, all rounded to powers of two, and of two as near the shorter; an entry without a
    length serves where none has one.
    """
    names = [kernel] if variant is None else [f"{kernel}/{variant}", kernel]
    for key, name in itertools.product(keys, names):
        of_kernel = table().get(key, {}).get(name, {})
        shapes = of_kernel.get(dtype) or of_kernel.get("any") or {}
        widths = {_numbers(shape)[0] for shape in shapes}
        larger = [each for each in widths if each >= width]
        if not larger and (whole or not widths):
            continue
        best = min(larger) if larger else max(widths)
        fitting = [shape for shape in shapes if _numbers(shape)[0] == best]
        with_length = [shape for shape in fitting if len(_numbers(shape)) > 1]
        nearest = min(with_length or fitting, key=lambda shape: _apart(_numbers(shape)[-1], length))
        return nearest, Config(*shapes[nearest])
    raise KeyError(f"configs.json has no default for {kernel}, {dtype}, width {width}")


def _numbers(shape: str) -> list[int]:
    return [int(number) for number in shape.split("x")]


def _apart(entry: int, length: int) -> tuple[int, int]:
    return abs(_power(entry) - _power(length)), entry


@functools.lru_cache(4096)
def _power(length: int) -> int:
    """The nearest power of two, by its exponent."""
    return round(math.log2(max(length, 1)))
