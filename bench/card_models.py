"""Whole encoders on a card beside what else a user could pick: what `bench models --device` runs.

Times are what a user waits for: the wall clock until the card has done. The cases, the peers and
how to read the figures: README.md beside this file.
"""

from __future__ import annotations

import argparse
import gc
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from bench import encoder_rows, workloads
from bench.check import why
from bench.chosen import chosen
from bench.encoder_rows import difference
from bench.measure import ceilings, clock, machine, memory, record
from bench.peers import card_encoders, pyenc_encoder
from bench.peers.card_call import Prepare
from bench.peers.encoders import Peer
from bench.show import drawing, machine_lines, models_table
from bench.subjects import SUBJECTS, config_of
from bench.workloads import Case

DTYPE = "bfloat16"
FULL: dict[str, Any] = {"repeats": 25, "budget": 2.0, "least": 5, "limit": 8.0}
QUICK: dict[str, Any] = {"repeats": 5, "budget": 0.3, "limit": 2.0}
"""How often each program runs; see `clock.in_turns`."""
WARM_UPS = 3
"""Runs before the clock counts; what compiles does so in the first."""
PACKAGES = "triton", "transformers", "sentence-transformers"


def main(options: argparse.Namespace, device: torch.device) -> int:
    """Run the cases asked for.

    Returns:
        0; 1 where a program disagrees with the oracle or with ours, or ours does not run.
    """
    cases = chosen(
        workloads.card_cases(options.quick),
        lambda case: (f"{case.model} {case.name}", (DTYPE,)),
        options,
    )
    if options.list:
        for model in dict.fromkeys(case.model for case in cases):
            print("\n".join(f"{model} {case.name}" for case in cases if case.model == model))
            print("\n".join([f"peers of {model}:", *_indented(card_encoders.peers(model, device))]))
        return 0
    return run(cases, options, device)


def _indented(names: Mapping[str, Peer]) -> list[str]:
    return [f"  {name}" for name in names]


def run(cases: Sequence[Case], options: argparse.Namespace, device: torch.device) -> int:
    """As `main`, of cases that are chosen already."""
    start = time.perf_counter()
    environment = machine.environment(PACKAGES, device)
    rates = ceilings.ceilings(device)
    print(machine_lines.header(environment, rates))
    result: dict[str, Any] = {"op": "models", "environment": environment, "quick": options.quick}
    result |= {"dtype": DTYPE, "ceilings": rates, "oracle": {}, "cases": []}
    result["titles"] = {case.model: SUBJECTS[case.model].title for case in cases}
    path = None
    if options.out or not options.quick:
        path = record.result_file("models", options.out, device)
    wrong: list[str] = []
    for model in result["titles"]:
        source = SUBJECTS[model].source()
        if source is None:
            print(f"\n{model}: the checkpoint is absent: {SUBJECTS[model].absent}")
            continue
        programs = Programs(model, source, device)
        result["oracle"][model] = programs.errors
        print(f"\n{model}, largest difference from the float64 reference on short texts: ", end="")
        print(", ".join(f"{name} {error:.0e}" for name, error in programs.errors.items()))
        wrong += programs.wrong
        for case in cases:
            if case.model != model:
                continue
            found = run_case(case, programs, options)
            result["cases"].append(found)
            if path is not None:
                record.write_result(path, result)  # an interrupted run keeps what it has
            print(models_table.case_lines(found, rates["gemm_bf16_gflops"] or 0.0), flush=True)
            wrong += [f"{model} at {case.name}: {name}" for name in _wrong(programs.peers, found)]
        del programs
        _let_go(device)
    result["ceilings_after"] = ceilings.ceilings(device)
    result["seconds"] = time.perf_counter() - start
    print(f"\n{models_table.explanation(result)}\n{models_table.markdown(result)}")
    print(f"\nafterwards: {machine_lines.ceiling_line(result['ceilings_after'])}")
    print(f"all took {result['seconds']:.0f} s")
    drawing.keep(path, result, plot=options.plot is not False)
    for name in wrong:
        print(f"DISAGREES more than it may, or does not run: {name}", file=sys.stderr)
    return int(bool(wrong))


class Programs:
    """The programs of a model, loaded, and compared with the float64 reference on short texts.

    Whatever one dies of is its answer, kept in `failed`, and the others go on.
    """

    def __init__(self, model: str, source: Any, device: torch.device) -> None:
        self.model, self.source, self.device = model, source, device
        self.peers = card_encoders.peers(model, device)
        self.ours = next(iter(self.peers))
        self.loaded: dict[str, Prepare] = {}
        self.failed: dict[str, str] = {}
        self.errors: dict[str, float] = {}
        """By program, where it computes the same function."""
        for name, peer in self.peers.items():
            try:
                self.loaded[name] = peer.load(source)
            except Exception as error:
                self.failed[name] = why(error)
        short = encoder_rows.inputs(model, SUBJECTS[model].checked, source)
        texts = SUBJECTS[model].texts
        truth = (pyenc_encoder.texts_oracle if texts else pyenc_encoder.ids_oracle)(source)(short)
        for name, prepare in self.loaded.items():
            if self.peers[name].tolerance is None:
                continue
            try:
                ready = prepare(self.placed(short))
                self.errors[name] = difference(ready.results(ready.run())["out"], truth)
            except Exception as error:
                self.failed[name] = why(error)

    def placed(self, given: Any) -> Any:
        """Token ids go to the device, texts stay what they are."""
        return given if SUBJECTS[self.model].texts else [ids.to(self.device) for ids in given]

    @property
    def wrong(self) -> list[str]:
        allowed = {name: peer.tolerance or 0.0 for name, peer in self.peers.items()}
        off = [name for name, error in self.errors.items() if not error <= allowed[name]]
        return [f"{self.model}: {name}" for name in off]


def run_case(case: Case, programs: Programs, options: argparse.Namespace) -> dict[str, Any]:
    """One case through all programs in turns, then the memory that each one takes."""
    ours, device = programs.ours, programs.device
    data = programs.placed(encoder_rows.inputs(case.model, case.lengths, programs.source))
    runs, found = warmed_up(programs, data)
    seconds = clock.in_turns(
        runs, clock=clock.waiting_clock(device), **(QUICK if options.quick else FULL)
    )
    for name, times in seconds.items():
        found[name] |= clock.summary(times)
    for name in seconds:
        if ours in seconds:
            found[name]["ratio"] = found[name]["median"] / found[ours]["median"]
    runs.clear()  # and what they hold on the card
    for name in () if options.no_memory else seconds:
        prepare = programs.loaded[name]
        try:
            peak = memory.card_growth_mb(lambda prepare=prepare: _prepared(prepare, data), device)
        except Exception as error:
            found[name]["memory"] = why(error)
            continue
        found[name] |= {} if peak is None else {"peak_mb": peak}
    return {
        "model": case.model,
        "name": case.name,
        "texts": len(case.lengths),
        "tokens": case.tokens,
        "gflop": workloads.gflop(config_of(programs.source), case.lengths),
        "peers": found,
        "best": {DTYPE: encoder_rows.best_peer(programs.peers, DTYPE, found)},
    }


def warmed_up(
    programs: Programs, data: Any
) -> tuple[dict[str, Callable[[], Any]], dict[str, dict[str, Any]]]:
    """What runs, by name, and the beginning of each program's row: its difference, or its error."""
    runs: dict[str, Callable[[], Any]] = {}
    found: dict[str, dict[str, Any]] = {}
    ours: Any = None
    for name, peer in programs.peers.items():
        if name in programs.failed:
            found[name] = {"error": programs.failed[name]}
            continue
        try:
            ready = programs.loaded[name](data)
            rows = ready.results(ready.run())["out"]
            for _ in range(WARM_UPS - 1):
                ready.run()
            found[name] = {"precision": DTYPE}
            if name == programs.ours:
                ours = rows
            elif ours is not None and peer.tolerance is not None:
                found[name]["difference"] = difference(rows, ours)
            runs[name] = ready.run
        except Exception as error:
            found[name] = {"error": why(error)}
    return runs, found


def _prepared(prepare: Prepare, data: Any) -> Any:
    """Prepare anew and run: what is made beforehand counts as the program's memory."""
    ready = prepare(data)
    return ready, ready.run()


def _wrong(peers: Mapping[str, Peer], found: dict[str, Any]) -> list[str]:
    """Who is further from ours than two may be apart, and ours where it does not run."""
    ours = next(iter(peers))
    off = [
        name
        for name, row in found["peers"].items()
        if not row.get("difference", 0.0) <= 2 * (peers[name].tolerance or 0.0)
    ]
    return off + ([ours] if "error" in found["peers"][ours] else [])


def _let_go(device: torch.device) -> None:
    """A model's programs are gone; what they held goes back before the next one's come."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
