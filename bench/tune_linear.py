"""Products of linear layers, timed beside each other on this processor and written to choices.json.

pyenc bench tune -- --device cpu [--write]

One thread, in its own CPU seconds, so that what else runs here hardly shows. Never at a call.
"""

from __future__ import annotations

import datetime
import json
import math
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

from pyenc.ops.linear import choices, onednn, processor, wide

SHAPES = ((256, 512, 512), (512, 384, 1536), (1024, 768, 768))
"""(tokens, channels in, channels out)."""
ROUNDS, SECONDS = 15, 1.5
"""Of each pair of ways: as many rounds, fewer where those take longer than that."""

Pair = tuple[Callable[[], object], Callable[[], object]]


def ratio(
    old: Callable[[], object], new: Callable[[], object], clock: Callable[[], float]
) -> float:
    """Seconds of `old` by those of `new`, alternating; the more cautious of two estimates."""

    def seconds(function: Callable[[], object]) -> float:
        start = clock()
        function()
        return clock() - start

    old(), new()
    pairs: list[tuple[float, float]] = []
    start = clock()
    while len(pairs) < 3 or (len(pairs) < ROUNDS and clock() - start < SECONDS):
        pairs.append((seconds(old), seconds(new)))
    best = min(a for a, _ in pairs) / min(b for _, b in pairs)
    return min(best, statistics.median(a / b for a, b in pairs))


def ways(dtype: torch.dtype, shape: tuple[int, int, int]) -> dict[str, Pair]:
    """Way of `choices.WAYS` that can serve here -> what it is measured against, and itself."""
    tokens, channels, out = shape
    made = torch.Generator().manual_seed(0)
    x, weight, bias = (
        torch.randn(*size, generator=made).to(dtype)
        for size in ((tokens, channels), (out, channels), (out,))
    )
    pairs: dict[str, Pair] = {}

    def plain() -> object:
        return F.linear(x, weight, bias)

    if onednn.why_not(dtype) is None:
        packed = onednn.pack(weight)
        pairs["onednn"] = plain, lambda: onednn.run(x, packed, bias, "")
        pairs["gelu_fused"] = (
            lambda: F.gelu(onednn.run(x, packed, bias, "")),
            lambda: onednn.run(x, packed, bias, "gelu"),
        )
    if dtype in wide.DTYPES:
        pairs["wide"] = plain, lambda: wide.linear(x, weight, bias, None)
    return pairs


@torch.no_grad()
def gains(
    dtype: torch.dtype, clock: Callable[[], float] = time.process_time
) -> dict[str, list[float]]:
    """Way -> its gain at each of `SHAPES`."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        measured = [
            {way: ratio(*pair, clock) for way, pair in ways(dtype, shape).items()}
            for shape in SHAPES
        ]
    finally:
        torch.set_num_threads(threads)
    return {way: [each[way] for each in measured] for way in measured[0]}


def entry(measured: dict[torch.dtype, dict[str, list[float]]]) -> dict[str, Any]:
    """As choices.json has it: of each way the geometric mean over the shapes."""
    date = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d")
    found: dict[str, Any] = {
        "source": f"measured {date} by pyenc bench tune, one thread, torch {torch.__version__}"
    }
    for dtype, of_ways in measured.items():
        found[str(dtype).removeprefix("torch.")] = {
            way: round(math.prod(each) ** (1 / len(each)), 2) for way, each in of_ways.items()
        }
    return found


def write(name: str, found: dict[str, Any]) -> None:
    """Into choices.json, under the processor's name."""
    table = json.loads(choices.FILE.read_text("utf-8"))
    table[name] = found
    choices.FILE.write_text(as_text(table), "utf-8")


def as_text(table: dict[str, Any]) -> str:
    """JSON with a dtype a line."""
    entries = []
    for name, found in table.items():
        lines = ",\n".join(f'  "{key}": {json.dumps(value)}' for key, value in found.items())
        entries.append(f' "{name}": {{\n{lines}\n }}')
    return "{\n" + ",\n".join(entries) + "\n}\n"


def run(*, to_file: bool) -> int:
    """Measure, print and, if asked to, write; the exit status."""
    kind = processor.here()
    print(kind.name or f"a processor of unknown kind, {kind.isa or 'no x86'}", flush=True)
    measured = {}
    for dtype in onednn.DTYPES:
        measured[dtype] = gains(dtype)
        for way, each in measured[dtype].items():
            figures = " ".join(f"{gain:.2f}x" for gain in each)
            print(f"  {dtype}, {way}: {figures}", flush=True)
    if to_file and not kind.name:
        print("not written: an entry needs the processor's vendor, family and model")
        return 2
    if to_file:
        write(kind.name, entry(measured))
        print(f"written to {choices.FILE.name}")
    return 0
