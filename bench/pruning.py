"""Candidates for a tile, compiled ahead of time: which of them are not worth a card's time.

No card is asked. Dropped is what cannot run (too much shared memory, nothing that compiles) and
what no card has ever chosen: more than `SPILLED_BYTES` spilled, and wgmma products that wait for
one another, where those of other candidates do not. Fewer blocks a multiprocessor and more
registers are shown and drop nothing: what an H100 has chosen is often worse in both than others of
the same tile, whose registers are bounded (bench/NOTES.md).
"""

from __future__ import annotations

import collections
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple
from unittest import mock

import torch
from triton.runtime.jit import JITFunction

from bench import occupancy
from bench.ahead_of_time import SHARED_LIMIT, Compiled, compile_for
from bench.aot_work import SERIALISED
from bench.processes import over_candidates
from bench.tunables import TUNABLES, kernel_of
from pyenc_kernels.configs import Config

SPILLED_BYTES = 1024
"""Of a thread, at the most. An H100 has chosen 560; the best beyond this limit took it 1.15 times
as long as the best of all (dk and dv of ALiBi, bench/NOTES.md)."""

WGMMA = "wgmma.mma_async"

SHARED = "more shared memory than there is"
WAITING = f"products serialised ({SERIALISED})"
SPILLS = f"more than {SPILLED_BYTES:,} bytes spilled"
FAILS = "does not compile"
ENDS = "ends the compiler"


class Form(NamedTuple):
    """What is compiled once, whatever the length."""

    kernel: str
    dtype: str
    width: int
    length: int
    """Of one shape of that width: of shapes that differ in length alone one is enough."""


@dataclass(frozen=True)
class Judged:
    """A candidate, and what the compiler made of it."""

    config: Config
    compiled: Compiled | None
    why: str | None
    """It is dropped, or None: it is kept."""
    error: str | None = None
    """Where it does not compile."""

    @property
    def blocks(self) -> int:
        """A multiprocessor."""
        of = self.compiled
        if of is None:
            return 0
        return occupancy.blocks(of.architecture, of.registers, of.warps, of.shared_bytes)

    def row(self) -> dict[str, Any]:
        compiled = {} if self.compiled is None else self.compiled.row()
        return {
            "config": self.config.numbers, **compiled, "blocks": self.blocks, "dropped": self.why,
            "error": self.error,
        }  # fmt: skip


def serves(architecture: str) -> bool:
    """Whether it is known what a multiprocessor of that architecture holds."""
    return architecture in occupancy.RESIDENT


def why_dropped(compiled: Compiled) -> str | None:
    """Why a candidate is not timed, where others are, or None."""
    if not compiled.fits:
        return SHARED
    if compiled.spilled_bytes > SPILLED_BYTES:
        return SPILLS
    return WAITING if SERIALISED in compiled.warnings else None


def judged(
    candidates: dict[Form, list[Config]], architecture: str, *, keep: bool = False
) -> dict[Form, list[Judged]]:
    """All candidates of each kernel, in their order, compiled for that architecture.

    keep: as of `compile_for`.
    """
    work = {(form, architecture, keep): listed for form, listed in candidates.items()}
    results, fatal = over_candidates(_compile, work)
    found = {
        (form, one.config): one for form, part in results for one in part
    } | {
        (form, config): Judged(config, None, ENDS) for (form, *_), config in fatal
    }  # fmt: skip
    return {
        form: some_kept([found[form, config] for config in listed])
        for form, listed in candidates.items()
    }


def _compile(
    job: tuple[tuple[Form, str, bool], list[Config]],
) -> tuple[Form, list[Judged]]:
    (form, architecture, keep), candidates = job
    with mock.patch.object(JITFunction, "run", return_value=None):
        call = TUNABLES[form.kernel].call(*form, torch.device("cpu"))
    found = []
    for config in candidates:
        try:
            (compiled,) = compile_for(
                architecture, lambda config=config: call(config), (architecture, "default"),
                only=kernel_of(form.kernel), keep=keep,
            )  # fmt: skip
        except Exception as error:  # a layout that Triton has not, an instruction of another card
            said = f"{type(error).__name__}: {str(error).strip()[:200]}"
            found.append(Judged(config, None, FAILS, said))
        else:
            found.append(Judged(config, compiled, why_dropped(compiled)))
    return form, found


def some_kept(all_of_them: Sequence[Judged]) -> list[Judged]:
    """The same, where `why_dropped` alone would leave nothing to choose from.

    Where no product by wgmma would be kept, those that wait are not dropped for it: a wgmma that
    waits may still be ahead of none. Where nothing at all would be kept, the one is that has least
    of what they are dropped for; of two the one of which a multiprocessor holds more, then the one
    with fewer registers.
    """
    found = list(all_of_them)
    if not any(one.why is None and WGMMA in _products(one) for one in found):
        found = [replace(one, why=None) if one.why == WAITING else one for one in found]
    compiled = [one for one in found if one.compiled is not None]
    if compiled and all(one.why is not None for one in found):
        best = min(compiled, key=_demerits)
        found = [replace(one, why=None) if one is best else one for one in found]
    return found


def _products(one: Judged) -> tuple[str, ...]:
    return () if one.compiled is None else one.compiled.matrix_instructions


def _demerits(one: Judged) -> tuple[int, int, int, int]:
    of = one.compiled
    assert of is not None
    too_much = max(0, of.shared_bytes - SHARED_LIMIT[of.architecture])
    return too_much, of.spilled_bytes, -one.blocks, of.registers


def summary(form: Form, of: Sequence[Judged]) -> str:
    """How many of how many are timed, and why the others are not."""
    kept = [one for one in of if one.why is None]
    said = f"{form.kernel}, {form.dtype}, {form.width}: {len(kept)} of {len(of)} candidates kept"
    counts = collections.Counter(one.why for one in of if one.why is not None)
    if counts:
        said += "; dropped: " + ", ".join(f"{count} ({why})" for why, count in counts.most_common())
    nonetheless = {one.compiled and why_dropped(one.compiled) for one in kept} - {None}
    if nonetheless == {WAITING}:
        said += f"; kept for want of others: {WAITING}"
    elif nonetheless:
        said += "; all would be: the best of them is kept"
    return said


HEAD = ("rows", "columns", "warps", "stages", "bound", "shift", "keys", "registers", "spilled",
        "in loops", "shared", "blocks", SERIALISED)  # fmt: skip


def table(of: Iterable[Judged]) -> list[str]:
    """A line a candidate: its numbers, whether its shift is fixed and keys' numbers are in the
    product, what it takes (bytes spilled a thread, instructions of loops that spill, bytes of
    shared memory, blocks a multiprocessor), and whether it is kept."""
    lines = ["  ".join(HEAD)]
    for one in of:
        config, compiled = one.config, one.compiled
        cells = [config.block_m, config.block_n, config.num_warps, config.num_stages]
        cells.append("-" if config.maxnreg is None else config.maxnreg)
        cells.append("fixed" if config.fixed_shift else "-")
        cells.append("dot" if config.columns_in_product else "-")
        if compiled is None:
            cells += ["-"] * (len(HEAD) - len(cells))
        else:
            cells += [
                compiled.registers, f"{compiled.spilled_bytes:,}", compiled.spills_in_loops,
                f"{compiled.shared_bytes:,}", one.blocks,
                "yes" if SERIALISED in compiled.warnings else "no",
            ]  # fmt: skip
        row = "  ".join(f"{cell:>{len(name)}}" for cell, name in zip(cells, HEAD, strict=True))
        lines.append(f"{row}  {'kept' if one.why is None else one.error or one.why}")
    return lines
