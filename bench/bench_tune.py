"""Tile sizes of the Triton kernels, tried on this card and written to configs.json.

pyenc bench tune -- [--kernel attention_forward] [--dtype bfloat16] [--shape 64x8192] [--write]

Prints the candidates, fastest first; --write puts the best of each kernel, dtype and shape under
the card's name into kernels/pyenc_kernels/configs.json. Never at a call. What has been written is
then compiled for the card's architecture by `make aot`, whose table a test holds against it.

With --device cpu: the products of linear layers on this processor, for choices.json.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import os
import re
import statistics
import sys
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import harness
import torch
import tune_linear
from tunables import TUNABLES, Call, numbers

from pyenc_kernels import configs
from pyenc_kernels.configs import Config

DTYPES = ("bfloat16", "float16", "float32")
ROUNDS = 20
MOST_WORKERS = 16
"""That compile: each has a context on the card and the inputs of its own."""
AT_ONCE = 4
"""Candidates of a job."""


def compile_all(work: list[tuple[str, str, str]], device: torch.device) -> None:
    """Fill Triton's cache on disk, every core at it: one after the other takes minutes.

    work: (kernel, dtype, shape); of shapes that differ in length alone one is enough.
    """
    by_width = {(kernel, dtype, numbers(shape)[0]): shape for kernel, dtype, shape in work}
    jobs = []
    for (kernel, dtype, _), shape in by_width.items():
        candidates = TUNABLES[kernel].candidates(dtype)
        parts = [candidates[at : at + AT_ONCE] for at in range(0, len(candidates), AT_ONCE)]
        jobs += [(kernel, dtype, shape, device, part) for part in parts]
    workers = min(os.cpu_count() or 1, len(jobs), MOST_WORKERS)
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
        list(pool.map(_compile, jobs))


def _compile(job: tuple[str, str, str, torch.device, list[Config]]) -> None:
    kernel, dtype, shape, device, candidates = job
    torch.cuda.set_device(device)
    call = TUNABLES[kernel].call(kernel, dtype, *numbers(shape), device)
    for config in candidates:
        with contextlib.suppress(Exception):  # `measure` says what it died of
            call(config)


def measure(call: Call, candidates: list[Config], device: torch.device) -> dict[Config, float]:
    """Median seconds of each candidate that compiles and fits, all taking turns."""
    clock = harness.clock_for(device)
    runs = {}
    for config in candidates:
        try:
            call(config)
            torch.cuda.synchronize(device)
        except Exception as error:  # too much shared memory, a layout that Triton has not
            print(f"  {list(vars(config).values())}: {type(error).__name__}", flush=True)
            continue
        runs[str(list(vars(config).values()))] = (config, lambda config=config: call(config))
    timed = harness.in_turns(
        {name: run for name, (_, run) in runs.items()}, repeats=ROUNDS, budget=1.0, clock=clock
    )
    return {runs[name][0]: statistics.median(seconds) for name, seconds in timed.items()}


def write(device: torch.device, kernel: str, dtype: str, shape: str, best: Config) -> None:
    """Into configs.json, under the card's name and beside its architecture's."""
    card, architecture, *_ = configs.keys_of(device)
    table = json.loads(configs.FILE.read_text("utf-8"))
    of_card = table.setdefault(card, {"architecture": architecture})
    of_card.setdefault(kernel, {}).setdefault(dtype, {})[shape] = list(vars(best).values())
    configs.FILE.write_text(as_text(table) + "\n", "utf-8")


def as_text(node: Any, depth: int = 0) -> str:
    """JSON with a configuration a line."""
    if not isinstance(node, dict):
        return json.dumps(node)
    inner = ",\n".join(
        f'{" " * (depth + 1)}"{key}": {as_text(value, depth + 1)}' for key, value in node.items()
    )
    return f"{{\n{inner}\n{' ' * depth}}}"


def _shape(text: str) -> str:
    if not re.fullmatch(r"[1-9]\d*(x[1-9]\d*)?", text):
        raise argparse.ArgumentTypeError(f"{text!r}: expected a width or WIDTHxLENGTH, as 64x8192")
    return text


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--kernel", action="append", choices=TUNABLES, help="default: all")
    parser.add_argument("--dtype", action="append", choices=DTYPES, help="default: bfloat16")
    parser.add_argument(
        "--shape", action="append", type=_shape, metavar="WIDTH[xLENGTH]",
        help="head dim and tokens of a sequence, or columns; default: those of each kernel",
    )  # fmt: skip
    parser.add_argument(
        "--write", action="store_true", help="the best into configs.json; on a CPU, choices.json"
    )
    options = parser.parse_args()
    if options.shape and not options.kernel:
        parser.error("--shape is of one kind of kernel: say which with --kernel")
    for shape in options.shape or ():
        if any(k.startswith("attention") for k in options.kernel) and numbers(shape)[0] > 256:
            parser.error(f"--shape {shape}: head dims go to 256")
    device = torch.device(options.device)
    if device.type == "cpu":
        if options.kernel or options.dtype or options.shape:
            parser.error("--kernel, --dtype and --shape are of Triton kernels, on a GPU")
        return tune_linear.run(to_file=options.write)
    if device.type != "cuda" or not torch.cuda.is_available():
        print(
            "pyenc: error: tuning needs a GPU that torch sees (cuda, ROCm's too), or --device cpu",
            file=sys.stderr,
        )
        return 2
    device = torch.device("cuda", device.index or 0)
    torch.cuda.set_device(device)
    card = configs.keys_of(device)[0]
    work = [
        (kernel, dtype, shape)
        for kernel in options.kernel or TUNABLES
        for dtype in options.dtype or ["bfloat16"]
        for shape in options.shape or TUNABLES[kernel].shapes
    ]
    compile_all(work, device)
    for kernel, dtype, shape in work:
        print(f"{card}, {kernel}, {dtype}, {shape}", flush=True)
        tunable = TUNABLES[kernel]
        call = tunable.call(kernel, dtype, *numbers(shape), device)
        measured = measure(call, tunable.candidates(dtype), device)
        timed = sorted(measured.items(), key=lambda item: item[1])
        for config, seconds in timed[:8]:
            print(f"  {list(vars(config).values())}: {1e3 * seconds:.3f} ms")
        if options.write and timed:
            write(device, kernel, dtype, shape, timed[0][0])
    return 0


if __name__ == "__main__":
    sys.exit(main())
