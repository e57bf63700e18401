"""What `make aot` compiles: every shipped configuration, and the branches of the kernels.

A card is an architecture, or the name of one that configs.json has entries for.
"""

from __future__ import annotations

from typing import Any, NamedTuple
from unittest import mock

import torch
from triton.runtime.jit import JITFunction

from bench.ahead_of_time import ARCHITECTURES, Compiled, compile_for
from bench.aot_calls import TOKENS, VARIANTS, call
from bench.tunables import TUNABLES, kernel_of, numbers
from pyenc_kernels import configs

SERIALISED = "C7515"
"""ptxas's warning where wgmma products wait for one another."""
DTYPES = ("bfloat16", "float16", "float32")

ON_SM_90 = ("alibi-whole", "alibi-fixed", "alibi-fixed-whole", "alibi-int64", "t5-fixed",
           "line-fixed", "line-fixed-whole")  # fmt: skip
"""Variants that are compiled for sm_90 alone: they are there for `SERIALISED`, and no other
architecture has wgmma."""
WIDE = ("none", "window", "t5", "dense", "line")
"""Variants that are compiled with wide heads too, where shared memory is scarce: what the families
with such heads run, and what is gathered for each pair."""
SHAPES = dict.fromkeys(VARIANTS, "64") | {
    "disentangled": "64",
    "embedding": "768",
    "gated": "3072",
    "gated_linear": "3072",
    "norm": "768",
    "norm_rotary": "128",
    "rotary": "64",
    "segment_mean": "768",
}
MAIN = (
    "none", "alibi", "alibi-whole", "alibi-fixed", "alibi-fixed-whole", "alibi-int64", "t5",
    "t5-fixed", "line-fixed", "line-fixed-whole", "window", "disentangled", "embedding", "gated",
    "gated_linear", "norm", "norm_rotary", "rotary", "segment_mean",
)  # fmt: skip
"""Ops that at their shape in bfloat16 may neither spill (with fewer registers than the compiler
wants: not in a loop) nor have their products serialised; of the other variants it is written
down."""

SPILLED_ONCE = 16
"""Bytes that a thread may put away where they are no loop's: four registers, stored and loaded once
a program. What the compiler makes of a number too many changes with its version."""

LEFT_OUT = {
    "_probe": "compiled for the user's own functions, where a bias is checked",
    "_probe_lookup": "as _probe",
    "_probe_decay": "as _probe",
    "_probe_tail": "as _probe",
}
"""Kernels that no call of aot_calls.py launches, and why."""


class Work(NamedTuple):
    """One call, forward and backward, for one card."""

    card: str
    op: str
    dtype: str
    shape: str

    @property
    def key(self) -> str:
        return "/".join(self)

    @property
    def size(self) -> tuple[int, int]:
        """(width, length): of an average sequence, which chooses a configuration; a shape without a
        length is compiled with that of `TOKENS`."""
        return numbers(self.shape, TOKENS)

    @property
    def main(self) -> bool:
        main = at_its_shape(self.card, self.op)
        return self.op in MAIN and self.dtype == main.dtype and self.size[0] == main.size[0]

    @property
    def architecture(self) -> str:
        return str(configs.table().get(self.card, {}).get("architecture", self.card))

    @property
    def keys(self) -> tuple[str, ...]:
        """Where its configurations are looked for, as on the card."""
        return tuple(dict.fromkeys((self.card, self.architecture, "default")))


def at_its_shape(card: str, op: str) -> Work:
    return Work(card, op, "bfloat16", SHAPES[op])


def listed() -> list[Work]:
    """Every op at its shape, and whatever configs.json has an entry for."""
    work = [
        at_its_shape(architecture, op)
        for architecture in ARCHITECTURES
        for op in SHAPES
        if op not in ON_SM_90 or architecture == "sm_90"
    ]
    work += [
        Work(architecture, op, "bfloat16", width)
        for architecture in ARCHITECTURES
        for op in WIDE
        for width in ("128", "256")
    ]
    for architecture in ARCHITECTURES:
        work += _entries(architecture, (architecture, "default"))
    for card, entries in configs.table().items():
        if "architecture" in entries:
            own = _entries(card, (card,))
            work += own
            # Every branch with each tile that the card would take at the main head dim.
            shapes = {each.shape for each in own if each.op == "alibi" and each.main}
            work += [Work(card, op, "bfloat16", shape) for op in VARIANTS for shape in shapes]
    return sorted(set(work))


def _entries(card: str, keys: tuple[str, ...]) -> list[Work]:
    return [
        Work(card, (TUNABLES.get(name) or TUNABLES[kernel_of(name)]).op, dtype, shape)
        for key in keys
        for name, dtypes in configs.table().get(key, {}).items()
        if isinstance(dtypes, dict)
        for of, shapes in dtypes.items()
        for dtype in (DTYPES if of == "any" else (of,))
        for shape in shapes
    ]


def shipped(work: Work) -> dict[str, list[int]]:
    """The configuration of each kernel that a call asks one for."""
    found: dict[str, list[int]] = {}
    ask = configs._config_for

    def note(kernel: str, *where: Any) -> configs.Config:
        config = ask(kernel, *where)
        found[kernel] = config.numbers
        return config

    with (
        mock.patch.object(configs, "_config_for", note),
        mock.patch.object(configs, "keys_of", return_value=work.keys),
        mock.patch.object(JITFunction, "run", return_value=None),
    ):
        _call(work)
    return found


def compile_work(work: Work) -> list[Compiled]:
    return compile_for(work.architecture, lambda: _call(work), work.keys)


def launched(work: Work) -> set[str]:
    """The names of the kernels that a call launches; none is compiled, none runs."""
    names: set[str] = set()

    def note(self: Any, *args: Any, **options: Any) -> None:
        names.add(self.fn.__name__)

    with mock.patch.object(JITFunction, "run", note):
        _call(work)
    return names


def _call(work: Work) -> None:
    call(work.op, getattr(torch, work.dtype), *work.size)


def wrong_with(work: Work, kernel: Compiled) -> str | None:
    """Why a kernel may not be shipped as it is, or None."""
    name = f"{kernel.kernel}, {work.key}"
    if not kernel.fits:
        return f"{name}: {kernel.shared_bytes} bytes of shared memory are more than the card has"
    # A card's own tiles have been timed, spills and all; an architecture's are guesses.
    guessed = work.main and work.card in ARCHITECTURES
    if guessed and kernel.spilled_bytes > SPILLED_ONCE and kernel.maxnreg is None:
        return f"{name}: spills {kernel.spilled_bytes} bytes"
    if guessed and kernel.spills_in_loops:
        return f"{name}: {kernel.spills_in_loops} instructions spill in its loops"
    if work.main and SERIALISED in kernel.warnings:
        return f"{name}: its matrix products are serialised ({SERIALISED})"
    return None
