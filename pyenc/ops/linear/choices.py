"""Which product a linear layer takes: data (choices.json), by processor and dtype.

Nothing is timed at a call: `pyenc bench tune --device cpu --write` measures and writes entries.
So every process on one kind of processor takes the same products, and gives the same bits.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from . import amx, processor

FILE = Path(__file__).with_name("choices.json")

WAYS = (
    "bf16x6", "bf16x3", "amx", "amx_unpacked", "onednn", "few_rows", "few_packed", "forward",
    "unpacked", "gelu_fused", "wide",
)  # fmt: skip
"""float32 by three parts of bfloat16 beside `F.linear`, and by two; bfloat16 by our own kernel for
matrix units with a packed weight beside it, and of a product and those of its gradient; oneDNN with
a packed weight beside it; few rows by our own kernel beside it, and by oneDNN with a packed weight;
oneDNN with operands as they lie beside it, of a product by itself, and of one and those of its
gradient; GELU in the same pass beside after it; halves in float32 beside `F.linear`."""

_RIVALS = {
    "few_rows": ("few_packed",), "few_packed": (), "gelu_fused": (),
    "forward": ("bf16x6", "amx", "wide"), "unpacked": ("bf16x6", "amx_unpacked", "wide"),
    "amx_unpacked": ("unpacked",),
}  # fmt: skip
"""Of a way, which others must be no faster; of one not named `bf16x6`, `amx`, `onednn` and `wide`.
Of few rows "few_rows" serves, where it gains, and by itself "few_packed" never does.
Of others the pack, where there can be one and it gains; else "forward", or with gradients
"unpacked" or "amx_unpacked"."""

_OF_AMX = ("amx", "amx_unpacked", "few_rows")
"""Ways that go with the matrix units, where a table has "amx": without its kernel, for which there
may be no compiler or which PYENC_CPU_ISA leaves out, it is as if it had not these."""

MARGIN = 1.15
"""How many times faster a way must have been: less is noise, and a pack costs memory."""

_MARGINS = {"forward": 1.02, "few_rows": 1.05, "amx_unpacked": 1.05}
"""Of ways that cost nothing else: `F.linear` of bfloat16 writes its bias into every row before it
multiplies, and oneDNN adds it on the way out; on two threads that is more than one measures."""


@dataclass(frozen=True)
class Choice:
    """What the table says of one dtype on one processor."""

    entry: str
    """The table's key."""
    source: str
    """Where, when and how it was measured, or why it was supposed."""
    gains: Mapping[str, float | bool] = field(default_factory=dict)
    """Of `WAYS`: how many times faster, measured; True where it is only supposed to be."""

    def prefers(self, way: str) -> bool:
        """Whether this one is to serve; of oneDNN, `amx`, `bf16x6` and `wide` only the fastest,
        and `bf16x3`, where it is allowed, if it is faster than those."""
        gain = self._gain(way)
        rivals = _RIVALS.get(way, ("bf16x6", "amx", "onednn", "wide"))
        return gain >= max(_MARGINS.get(way, MARGIN), *(self._gain(rival) for rival in rivals), 0)

    def why_not(self, way: str) -> str | None:
        """None where it is preferred, else the table's reason in one line."""
        if self.prefers(way):
            return None
        gain = self.gains.get(way, False)
        if isinstance(gain, bool):
            return f"choices.json does not prefer it ({self.entry})"
        margin = _MARGINS.get(way, MARGIN)
        if gain >= margin:
            others = ("onednn", "amx", "bf16x6")
            other = next((each for each in others if self.prefers(each)), "float32")
            return f"choices.json prefers {other} to it ({self.entry})"
        return f"choices.json has {gain:.2f}x F.linear, needs {margin}x ({self.entry})"

    def _gain(self, way: str) -> float:
        gain = self.gains.get(way, False)
        return float(gain) if not isinstance(gain, bool) else MARGIN if gain else 0.0


def table(file: Path | None = None) -> dict[str, Any]:
    """choices.json: a kind of processor, a class or "default" (`Processor.keys`) -> "source", and
    dtype -> way -> gain, for the dtypes that it knows of."""
    loaded: dict[str, Any] = json.loads((file or FILE).read_text("utf-8"))
    return loaded


def choice(dtype: torch.dtype) -> Choice:
    """For this process's processor, by the table that is shipped."""
    units = dtype == torch.bfloat16 and amx.unavailable() is None
    return _kept(FILE, processor.here(), dtype, units)


# What it is kept for is all that it is of: one process may ask of two kinds (tests do).
@functools.cache
def _kept(file: Path, kind: processor.Processor, dtype: torch.dtype, units: bool) -> Choice:
    found = lookup(table(file), kind, dtype)
    if units or amx.WAY not in found.gains:
        return found
    gains = {way: gain for way, gain in found.gains.items() if way not in _OF_AMX}
    return replace(found, gains=gains)


def lookup(entries: Mapping[str, Any], kind: processor.Processor, dtype: torch.dtype) -> Choice:
    """What the first entry that has the dtype says, of a table for a kind of processor."""
    name = str(dtype).removeprefix("torch.")
    for key in kind.keys:
        entry = entries.get(key, {})
        if name in entry:
            return Choice(key, entry["source"], entry[name])
    return Choice("default", "nothing is known of it: F.linear serves")
