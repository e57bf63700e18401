"""Products of linear layers, timed beside each other on this processor, for choices.json.

`pyenc bench tune --device cpu`: one thread, in its own CPU seconds, so that what else runs hardly
shows; --write puts the gains under the processor's name. Never at a call.
"""

from __future__ import annotations

import argparse
import datetime
import functools
import json
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.chosen import chosen
from bench.measure import machine, record
from pyenc.errors import InputError
from pyenc.ops.linear import amx, choices, few_rows, onednn, parts, processor, product, wide

SHAPES = ((256, 512, 512), (512, 384, 1536), (1024, 768, 768), (4096, 384, 1536))
"""(tokens, channels in, channels out)."""
FEW = 16
"""Tokens of a short text."""
ROUNDS, QUICK_ROUNDS, SECONDS = 15, 3, 1.5
"""Of a way: as many rounds, fewer where those take longer than that."""

Shape = tuple[int, int, int]
Work = tuple[torch.dtype, Shape]

Multiply = Callable[..., Tensor]
Call = Callable[[], object]
Pair = tuple[Call, Call]


def ratios(
    old: Call, ways: Mapping[str, Call], rounds: int, clock: Callable[[], float]
) -> dict[str, float]:
    """Seconds of `old` by those of each way; the more cautious of two estimates.

    All take turns, so that ways are compared in the same minutes: a processor's units may run at
    another rate in the next.
    """

    def seconds(function: Call) -> float:
        start = clock()
        function()
        return clock() - start

    of_old: list[float] = []
    of_ways: dict[str, list[float]] = {name: [] for name in ways}
    for function in (old, *ways.values()):
        function()
    start, longest = clock(), SECONDS * len(ways)
    while len(of_old) < 3 or (len(of_old) < rounds and clock() - start < longest):
        of_old.append(seconds(old))
        for name, way in ways.items():
            of_ways[name].append(seconds(way))
    return {
        name: min(
            min(of_old) / min(found),
            statistics.median(a / b for a, b in zip(of_old, found, strict=True)),
        )
        for name, found in of_ways.items()
    }


def torchs(a: Tensor, b: Tensor, bias: Tensor | None = None) -> Tensor:
    return F.linear(a, b.t(), bias)


def ways(dtype: torch.dtype, shape: Shape) -> dict[str, Pair]:
    """Way of `choices.WAYS` that can serve here -> what it is measured against, and itself."""
    tokens, channels, out = shape
    made = torch.Generator().manual_seed(0)
    x, weight, bias, grad = (
        torch.randn(*size, generator=made).to(dtype)
        for size in ((tokens, channels), (out, channels), (out,), (tokens, out))
    )
    pairs: dict[str, Pair] = {}

    def plain() -> object:
        return F.linear(x, weight, bias)

    def with_gradients(multiply: Multiply) -> object:
        """A product and those of its gradient."""
        return multiply(x, weight.t(), bias), multiply(grad, weight), multiply(grad.t(), x)

    torchs_gradients = functools.partial(with_gradients, torchs)
    for way in parts.PARTS:
        if product.why_not(way, x) is None:
            pairs[way] = plain, functools.partial(product.product, x, weight.t(), bias, way=way)
    rows = x[:FEW]

    def few() -> object:
        return F.linear(rows, weight, bias)

    if few_rows.why_not(rows, weight, bias) is None:
        pairs[few_rows.WAY] = few, lambda: few_rows.multiply(rows, weight, bias, None)
    if product.why_not(amx.WAY, x) is None:
        panels = amx.pack(weight)
        pairs[amx.WAY] = plain, lambda: amx.run(x, weight, panels, bias, "")
        pairs[amx.UNPACKED] = (
            torchs_gradients,
            functools.partial(with_gradients, functools.partial(product.product, way=amx.WAY)),
        )
    if onednn.why_not(dtype) is None:
        packed = onednn.pack(weight)
        pairs["onednn"] = plain, lambda: onednn.run(x, packed, bias, "")
        pairs["few_packed"] = few, lambda: onednn.run(rows, packed, bias, "")
        pairs["forward"] = plain, lambda: onednn.run(x, weight, bias, "")
        pairs["unpacked"] = (
            torchs_gradients,
            functools.partial(with_gradients, functools.partial(product.product, way="onednn")),
        )
        pairs["gelu_fused"] = (
            lambda: onednn.run(x, packed, bias, "gelu", fused=False),
            lambda: onednn.run(x, packed, bias, "gelu", fused=True),
        )
    if dtype in wide.DTYPES:
        pairs["wide"] = plain, lambda: wide.linear(x, weight, bias, None)
    return pairs


@torch.no_grad()
def gains(
    dtype: torch.dtype,
    shape: Shape,
    rounds: int = ROUNDS,
    clock: Callable[[], float] = time.process_time,
) -> dict[str, float]:
    """Way -> how many times faster it is than what it is measured against."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    beside: dict[Call, dict[str, Call]] = {}
    for way, (old, new) in ways(dtype, shape).items():
        beside.setdefault(old, {})[way] = new
    try:
        return {
            way: gain
            for old, those in beside.items()
            for way, gain in ratios(old, those, rounds, clock).items()
        }
    finally:
        torch.set_num_threads(threads)


def entry(measured: Mapping[torch.dtype, Sequence[Mapping[str, float]]]) -> dict[str, Any]:
    """As choices.json has it: of each way the geometric mean over the shapes."""
    date = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d")
    found: dict[str, Any] = {
        "source": f"measured {date} by pyenc bench tune, one thread, torch {torch.__version__}"
    }
    for dtype, of_shapes in measured.items():
        found[str(dtype).removeprefix("torch.")] = {
            way: round(statistics.geometric_mean([each[way] for each in of_shapes]), 2)
            for way in of_shapes[0]
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


def name_of(case: Work) -> tuple[str, tuple[str, ...]]:
    dtype, (tokens, channels, out) = case
    return f"{tokens} tokens, {channels} to {out}", (str(dtype).removeprefix("torch."),)


def main(options: argparse.Namespace) -> int:
    """Measure what the options ask for, print, and write.

    Raises:
        InputError: no such case; nothing to file an entry under.
    """
    listed = [(dtype, shape) for dtype in onednn.DTYPES for shape in SHAPES]
    work = chosen(listed, name_of, options)
    if options.list:
        for case in work:
            name, (dtype,) = name_of(case)
            print(f"{name}, {dtype}")
        return 0
    kind = processor.here()
    if options.write and not kind.name:
        raise InputError("--write: vendor, family and model of this processor are not known")
    print(kind.name or f"a processor of unknown kind ({kind.isa or 'not x86'})", flush=True)
    result: dict[str, Any] = {"environment": machine.environment(()), "work": []}
    measured: dict[torch.dtype, list[dict[str, float]]] = {}
    for dtype, shape in work:
        found = gains(dtype, shape, QUICK_ROUNDS if options.quick else ROUNDS)
        measured.setdefault(dtype, []).append(found)
        name, (plain,) = name_of((dtype, shape))
        said = ", ".join(f"{way} {gain:.2f}x" for way, gain in found.items())
        print(f"  {name}, {plain}: {said}", flush=True)
        result["work"].append({"case": name, "dtype": plain, "gains": found})
    if options.write:
        write(kind.name, entry(measured))
        print(f"written to {choices.FILE.name}")
    if options.out is not None:
        record.write_result(record.result_file("tune", options.out), result)
    return 0
