"""Tile sizes of the Triton kernels, tried on this card and written to configs.json.

Prints the candidates, fastest first; --write puts the best of each kernel, dtype and shape under
the card's name into kernels/pyenc_kernels/configs.json. Never at a call. What has been written is
then compiled for the card's architecture by `make aot`, whose table a test holds against it.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import os
import statistics
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

import torch

from bench.chosen import chosen
from bench.measure import clock, machine, record
from bench.tunables import TUNABLES, Call, numbers
from pyenc.cli.nearest import suggestion
from pyenc.errors import InputError
from pyenc_kernels import configs
from pyenc_kernels.configs import Config

Work = tuple[str, str, str]
"""(kernel, dtype, shape)"""

Job = TypeVar("Job")

ROUNDS, QUICK_ROUNDS = 20, 5
QUICK = 8
"""Candidates of each that a quick look tries, evenly out of all."""
MOST_WORKERS = 16
"""That compile: each has a context on the card and the inputs of its own."""
AT_ONCE = 4
"""Candidates of a job."""


def candidates_of(kernel: str, dtype: str, quick: bool) -> list[Config]:
    listed = TUNABLES[kernel].candidates(dtype)
    return listed[:: -(-len(listed) // QUICK)] if quick else listed


def compile_all(
    work: list[Work], device: torch.device, quick: bool = False
) -> set[tuple[str, str, int, Config]]:
    """Fill Triton's cache on disk, every core at it: one after the other takes minutes.

    work: of shapes that differ in length alone one is enough. Returns the candidates (kernel,
    dtype, width, configuration) that took the compiler's process with them, as its asserts do.
    """
    by_width = {(kernel, dtype, numbers(shape)[0]): shape for kernel, dtype, shape in work}
    jobs = []
    for (kernel, dtype, _), shape in by_width.items():
        candidates = candidates_of(kernel, dtype, quick)
        parts = [candidates[at : at + AT_ONCE] for at in range(0, len(candidates), AT_ONCE)]
        jobs += [(kernel, dtype, shape, device, part) for part in parts]
    fatal = set()
    workers = min(os.cpu_count() or 1, len(jobs), MOST_WORKERS)
    for kernel, dtype, shape, _, part in unfinished(_compile, jobs, workers):
        for config in part:
            if unfinished(_compile, [(kernel, dtype, shape, device, [config])], 1):
                fatal.add((kernel, dtype, numbers(shape)[0], config))
    return fatal


def unfinished(run: Callable[[Job], object], jobs: list[Job], workers: int) -> list[Job]:
    """Run the jobs in processes; those that didn't come back, because one of them ended its process
    and so the pool."""
    lost = []
    futures: dict[int, Future[object]] = {}
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
        for number, job in enumerate(jobs):
            with contextlib.suppress(BrokenProcessPool):
                futures[number] = pool.submit(run, job)
        for number, job in enumerate(jobs):
            try:
                futures[number].result()
            except (KeyError, BrokenProcessPool):
                lost.append(job)
    return lost


def _compile(job: tuple[str, str, str, torch.device, list[Config]]) -> None:
    kernel, dtype, shape, device, candidates = job
    torch.cuda.set_device(device)
    call = TUNABLES[kernel].call(kernel, dtype, *numbers(shape), device)
    for config in candidates:
        with contextlib.suppress(Exception):  # `measure` says what it died of
            call(config)


def measure(
    call: Call, candidates: list[Config], device: torch.device, rounds: int = ROUNDS
) -> dict[Config, float]:
    """Median seconds of each candidate that compiles and fits, all taking turns."""
    runs = {}
    for config in candidates:
        try:
            call(config)
            torch.cuda.synchronize(device)
        except Exception as error:  # too much shared memory, a layout that Triton has not
            print(f"  {config.numbers}: {type(error).__name__}", flush=True)
            continue
        runs[str(config.numbers)] = (config, lambda config=config: call(config))
    timed = clock.in_turns(
        {name: run for name, (_, run) in runs.items()},
        repeats=rounds,
        budget=1.0,
        clock=clock.clock_for(device),
    )
    return {runs[name][0]: statistics.median(seconds) for name, seconds in timed.items()}


def write(device: torch.device, kernel: str, dtype: str, shape: str, best: Config) -> None:
    """Into configs.json, under the card's name and beside its architecture's."""
    card, *_, architecture, _ = configs.keys_of(device)
    table = json.loads(configs.FILE.read_text("utf-8"))
    of_card = table.setdefault(card, {"architecture": architecture})
    variant = TUNABLES[kernel].variant
    name = kernel if variant is None else f"{kernel}/{variant}"
    of_card.setdefault(name, {}).setdefault(dtype, {})[shape] = best.numbers
    configs.FILE.write_text(as_text(table) + "\n", "utf-8")


def as_text(node: Any, depth: int = 0) -> str:
    """JSON with a configuration a line."""
    if not isinstance(node, dict):
        return json.dumps(node)
    inner = ",\n".join(
        f'{" " * (depth + 1)}"{key}": {as_text(value, depth + 1)}' for key, value in node.items()
    )
    return f"{{\n{inner}\n{' ' * depth}}}"


def work_of(options: argparse.Namespace) -> list[Work]:
    """What the options ask for.

    Raises:
        InputError: a kernel or a shape that there is not.
    """
    for kernel in options.kernel or ():
        if kernel not in TUNABLES:
            meant = suggestion(kernel, TUNABLES, ()) or ";"
            raise InputError(f"no --kernel {kernel!r}{meant} there are: {', '.join(TUNABLES)}")
        for shape in options.shape or ():
            if kernel.startswith("attention") and numbers(shape)[0] > 256:
                raise InputError(f"--shape {shape}: head dims go to 256")
    listed = [
        (kernel, dtype, shape)
        for kernel in options.kernel or TUNABLES
        for dtype in options.dtype or ["bfloat16"]
        for shape in options.shape or TUNABLES[kernel].shapes
    ]
    return chosen(listed, lambda work: (f"{work[0]} {work[2]}", (work[1],)), options)


def main(options: argparse.Namespace) -> int:
    """Tune what the options ask for.

    Raises:
        InputError: no such work, or no GPU.
    """
    work = work_of(options)
    if options.list:
        for kernel, dtype, shape in work:
            count = len(candidates_of(kernel, dtype, options.quick))
            print(f"{kernel} {shape}, {dtype}: {count} candidates")
        return 0
    device = torch.device(options.device or "cuda")
    if device.type != "cuda" or not torch.cuda.is_available():
        raise InputError(
            "tuning needs a GPU that torch sees (--device cuda, ROCm's too), or --device cpu"
        )
    device = torch.device("cuda", device.index or 0)
    torch.cuda.set_device(device)
    fatal = compile_all(work, device, options.quick)
    if options.warm:
        return 0
    card = configs.keys_of(device)[0]
    result: dict[str, Any] = {"environment": machine.environment(("triton",), device), "work": []}
    for kernel, dtype, shape in work:
        print(f"{card}, {kernel}, {dtype}, {shape}", flush=True)
        call = TUNABLES[kernel].call(kernel, dtype, *numbers(shape), device)
        rounds = QUICK_ROUNDS if options.quick else ROUNDS
        candidates = []
        for config in candidates_of(kernel, dtype, options.quick):
            if (kernel, dtype, numbers(shape)[0], config) in fatal:
                print(f"  {config.numbers}: ends the compiler", flush=True)
            else:
                candidates.append(config)
        measured = measure(call, candidates, device, rounds)
        timed = sorted(measured.items(), key=lambda item: item[1])
        for config, seconds in timed[:8]:
            print(f"  {config.numbers}: {1e3 * seconds:.3f} ms")
        if options.write and timed:
            write(device, kernel, dtype, shape, timed[0][0])
        result["work"].append(
            {
                "kernel": kernel, "dtype": dtype, "shape": shape,
                "timed": [[config.numbers, seconds] for config, seconds in timed],
            }
        )  # fmt: skip
        if options.out is not None:
            record.write_result(record.result_file("tune", options.out), result)
    return 0
