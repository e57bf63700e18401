"""Tile sizes of the Triton kernels, tried on this card and written to configs.json.

Candidates that the compiler alone rules out are dropped first (pruning.py); --architecture does
only that, and needs no card. Prints the others, fastest first; --write puts the best of each
kernel, dtype and shape under the card's name into kernels/pyenc_kernels/configs.json. Never at a
call. What has been written is then compiled for the card's architecture by `make aot`, whose table
a test holds against it.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
from typing import Any

import torch

from bench import occupancy, pruning
from bench.chosen import chosen
from bench.measure import clock, machine, record
from bench.processes import over_candidates
from bench.pruning import Form
from bench.tunables import TUNABLES, Call, kernel_of, numbers
from pyenc.cli.nearest import suggestion
from pyenc.errors import InputError
from pyenc_kernels import configs
from pyenc_kernels.configs import Config

Work = tuple[str, str, str]
"""(kernel, dtype, shape)"""

ROUNDS, QUICK_ROUNDS = 20, 5
QUICK = 8
"""Candidates of each that a quick look tries, evenly out of all."""


def candidates_of(kernel: str, dtype: str, quick: bool) -> list[Config]:
    listed = TUNABLES[kernel].candidates(dtype)
    return listed[:: -(-len(listed) // QUICK)] if quick else listed


def forms_of(work: list[Work]) -> list[Form]:
    """What of it is compiled apart."""
    by_width = {(kernel, dtype, numbers(shape)[0]): shape for kernel, dtype, shape in work}
    return [Form(*form[:2], *numbers(shape)) for form, shape in by_width.items()]


def compile_all(
    candidates: dict[Form, list[Config]], device: torch.device
) -> set[tuple[Form, Config]]:
    """Fill Triton's cache on disk, every core at it: one after the other takes minutes.

    Returns the candidates that took the compiler's process with them, as its asserts do.
    """
    work = {(form, device): listed for form, listed in candidates.items()}
    return {(form, config) for (form, _), config in over_candidates(_compile, work)[1]}


def _compile(job: tuple[tuple[Form, torch.device], list[Config]]) -> None:
    (form, device), candidates = job
    torch.cuda.set_device(device)
    call = TUNABLES[form.kernel].call(*form, device)
    for config in candidates:
        with contextlib.suppress(Exception):  # `measure` says what it died of
            call(config)


def without_a_card(options: argparse.Namespace, work: list[Work]) -> int:
    """What each candidate takes of a card of `--architecture`, and which a card would time.

    Raises:
        InputError: an architecture whose multiprocessors are not known.
    """
    architecture = options.architecture
    if not pruning.serves(architecture):
        there = ", ".join(occupancy.RESIDENT)
        raise InputError(f"--architecture {architecture}: candidates are compiled for {there}")
    result: dict[str, Any] = {
        "environment": machine.environment(("triton",)), "architecture": architecture, "work": [],
    }  # fmt: skip
    for form in forms_of(work):
        candidates = candidates_of(form.kernel, form.dtype, options.quick)
        of = pruning.judged({form: candidates}, architecture)[form]
        print("\n".join(pruning.table(of)))
        print(f"{architecture}, {pruning.summary(form, of)}\n", flush=True)
        result["work"].append({**form._asdict(), "candidates": [judged.row() for judged in of]})
        if options.out is not None:
            record.write_result(record.result_file("tune", options.out), result)
    return 0


def kept_for(
    candidates: dict[Form, list[Config]], device: torch.device
) -> dict[Form, list[Config]]:
    """Those that are timed: where its architecture is known, without those that need no card to be
    found out. What is compiled for that is in Triton's cache then."""
    architecture = configs.keys_of(device)[-2]
    if not pruning.serves(architecture):
        print(f"{architecture}: nothing is dropped ahead of time, all candidates are timed")
        return candidates
    judged = pruning.judged(candidates, architecture, keep=True)
    for form, of in judged.items():
        print(pruning.summary(form, of), flush=True)
    return {form: [one.config for one in of if one.why is None] for form, of in judged.items()}


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
    name = kernel if variant is None else f"{kernel_of(kernel)}/{variant}"
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
    if options.architecture is not None:
        return without_a_card(options, work)
    device = torch.device(options.device or "cuda")
    if device.type != "cuda" or not torch.cuda.is_available():
        raise InputError(
            "tuning needs a GPU that torch sees (--device cuda, ROCm's too), or --device cpu"
        )
    device = torch.device("cuda", device.index or 0)
    torch.cuda.set_device(device)
    forms = {form[:3]: form for form in forms_of(work)}
    listed = kept_for(
        {form: candidates_of(form.kernel, form.dtype, options.quick) for form in forms.values()},
        device,
    )
    fatal = compile_all(listed, device)
    if options.warm:
        return 0
    card = configs.keys_of(device)[0]
    result: dict[str, Any] = {"environment": machine.environment(("triton",), device), "work": []}
    for kernel, dtype, shape in work:
        print(f"{card}, {kernel}, {dtype}, {shape}", flush=True)
        call = TUNABLES[kernel].call(kernel, dtype, *numbers(shape), device)
        rounds = QUICK_ROUNDS if options.quick else ROUNDS
        candidates = []
        form = forms[kernel, dtype, numbers(shape)[0]]
        for config in listed[form]:
            if (form, config) in fatal:
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
