"""The program of every op: check, time in turns, measure memory, write, draw."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

import torch

from bench.check import Checks, Wrong, why
from bench.chosen import chosen, chosen_device
from bench.compare import CannotServe, Case, Op, Peer, Ready, Tensors
from bench.measure import ceilings, clock, launching, machine, memory, record
from bench.show import drawing, machine_lines, op_table

FULL: dict[str, Any] = {"repeats": 15, "budget": 2.0, "limit": 8.0}
QUICK: dict[str, Any] = {"repeats": 5, "budget": 0.3, "limit": 2.0}
"""How often each peer runs; see `clock.in_turns`."""

More = Callable[[Sequence[Case], bool], tuple[dict[str, Any], list[str]]]
"""Of the cases, and whether it is a quick look: what goes into the result, and what is missed."""


def main(options: argparse.Namespace) -> int:
    """Run the benchmark of the op that the options name.

    Returns:
        0; 1 where a peer disagrees with the oracle.

    Raises:
        InputError: a mistake in the options.
    """
    device = chosen_device(options)
    op: Op = importlib.import_module(f"bench.ops.{options.op}").op(device)
    return run(op, options, device)


def run(op: Op, options: argparse.Namespace, device: torch.device, more: More | None = None) -> int:
    """As `main`, of an op that is there already; `more` is measured after the cases."""
    warnings.filterwarnings("ignore", module=r"torch\b.*")
    if options.child:
        memory.report(_measure_memory(op, memory.task()))
        return 0
    cases = _chosen(op, options, device)
    if options.list:
        print("\n".join([*(f"{case.name}, {case.dtype}" for case in cases), "peers:"]))
        print("\n".join(f"  {peer.name}" for peer in op.peers))
        return 0
    if options.warm:
        _warm(op, cases, device)
        return 0
    return _run(op, cases, options, device, more)


def _run(
    op: Op, cases: list[Case], options: argparse.Namespace, device: torch.device, more: More | None
) -> int:
    start = time.perf_counter()
    clock.keep_freed_memory()
    environment = machine.environment(op.packages, device)
    result: dict[str, Any] = {
        "op": op.name, "explanation": op.explanation, "quick": options.quick,
        "environment": environment, "ceilings": ceilings.ceilings(device), "cases": [],
    }  # fmt: skip
    print(machine_lines.header(environment, result["ceilings"]))
    if (environment["load_average"] or 0) > 0.5:
        print(f"the machine is not quiet: load average {environment['load_average']}")
    print(f"\n{op.name}: {op.explanation}\n{op_table.EXPLANATION}", flush=True)
    # A quick look leaves no file behind unless one is asked for: its figures are not for keeping.
    path = None
    if options.out or not options.quick:
        path = record.result_file(op.name, options.out, device)
    wrong: list[str] = []
    checks = Checks(op, device, options.quick)
    for case in cases:
        found = _run_case(op, case, checks, options)
        result["cases"].append(found)
        print(op_table.case_lines(found, result["ceilings"]), flush=True)
        bad = [name for name, row in found["peers"].items() if not row.get("right", True)]
        wrong += [f"{op_table.title(found)}: {name}" for name in bad]
        if path is not None:
            record.write_result(path, result)  # an interrupted run keeps what it has
    missed: list[str] = []
    if more is not None:
        measured, missed = more(cases, options.quick)
        result |= measured
    if not options.quick:
        result["ceilings_after"] = ceilings.ceilings(device)
        print(f"\nafterwards: {machine_lines.ceiling_line(result['ceilings_after'])}")
    result["seconds"] = time.perf_counter() - start
    print(f"\nall took {result['seconds']:.0f} s")
    drawing.keep(path, result, plot=options.plot is not False)
    for name in wrong:
        print(f"DISAGREES with the float64 oracle: {name}", file=sys.stderr)
    for line in missed:
        print(f"MISSED: {line}", file=sys.stderr)
    return int(bool(wrong or missed))


def _warm(op: Op, cases: list[Case], device: torch.device) -> None:
    """Run everything once that compiles at its first call: the caches on disk have it then."""
    for case in cases:
        for each in (case.reduced(), case):
            for peer in op.peers:
                if peer.of and peer.of != case.kind["op"]:
                    continue
                if (peer.ours and "triton" in peer.name) or peer.compiles:
                    # Whatever it dies of, memory that others hold too: the timed run says why.
                    with contextlib.suppress(Exception):
                        peer.prepare(each, op.inputs(each, device)).run()


def _chosen(op: Op, options: argparse.Namespace, device: torch.device) -> list[Case]:
    return chosen(op.cases(options.quick, device), lambda case: (case.name, (case.dtype,)), options)


def _run_case(op: Op, case: Case, checks: Checks, options: argparse.Namespace) -> dict[str, Any]:
    """One case: who serves and is right, then all of those in turns, then each one's memory."""
    device = checks.device
    inputs = op.inputs(case, device)
    ready: dict[str, Ready] = {}
    rows: dict[str, dict[str, Any]] = {}
    for peer in op.peers:
        if peer.of and peer.of != case.kind["op"]:
            continue
        try:
            ready[peer.name], verdict = checks.check(peer, case, inputs)
            rows[peer.name] = {
                "distance": verdict.error, "allowed": verdict.allowed, "right": verdict.right
            }  # fmt: skip
            if peer.share is not None and (share := peer.share(case, inputs)) is not None:
                rows[peer.name]["tiles"] = share
        except Wrong as error:
            rows[peer.name] = {"error": f"DISAGREES: {error}", "right": False}
        except Exception as error:  # whatever a peer dies of is its answer, and the rest goes on
            rows[peer.name] = {"error": why(error)}
    runs = {name: peer.run for name, peer in ready.items()}
    seconds = clock.in_turns(
        runs, clock=clock.clock_for(device), **(QUICK if options.quick else FULL)
    )
    checks.forget()
    for name, times in seconds.items():
        rows[name] |= clock.summary(times) | _launched(runs[name], device)
    medians = {name: rows[name]["median"] for name in runs}
    subject = next((peer.name for peer in op.peers if peer.ours and peer.name in runs), None)
    for name, ratio in clock.ratios(medians, subject).items():
        rows[name]["ratio"] = ratio
    if case.memory and not options.no_memory:
        for peer in op.peers:
            if peer.name in runs:
                try:
                    rows[peer.name] |= _memory(op, case, peer, inputs, device)
                except Exception as error:  # out of memory, with what the others still hold
                    rows[peer.name]["memory"] = why(error)
    facts = {key: value for key, value in asdict(case).items() if key not in ("small", "memory")}
    return {**facts, "subject": subject, "peers": rows}


def _launched(run: Callable[[], Any], device: torch.device) -> dict[str, Any]:
    """On a GPU "wall" and "replay", seconds a call; "not captured" says why there is no replay."""
    if device.type != "cuda":
        return {}
    found: dict[str, Any] = {"wall": launching.back_to_back(run, device)}
    try:
        graph, _out = launching.captured(run, device)  # a replay writes to the results' memory
        found["replay"] = launching.back_to_back(graph.replay, device)
    except Exception as error:  # whatever a peer does that no graph takes
        found["not captured"] = why(error)
    return found


def _memory(
    op: Op, case: Case, peer: Peer, inputs: Tensors, device: torch.device
) -> dict[str, Any]:
    """Memory beyond inputs and results, in a process of its own; in this one on a GPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        ready = peer.prepare(case, inputs)  # anew, for what is made beforehand counts
        results = ready.results(ready.run())
        peak = torch.cuda.max_memory_allocated(device) - before
        return {"extra_mb": max(0.0, peak / 1e6 - _returned_mb(results))}
    found = memory.in_child([op.name], {"case": asdict(case), "peer": peer.name})
    return {"extra_mb": found["extra_mb"]} if "error" not in found else {"memory": found["error"]}


def _measure_memory(op: Op, task: dict[str, Any]) -> dict[str, Any]:
    """The child's side: what preparing and running one peer takes, less what it returns; its word
    where it cannot serve beside what the parent holds."""
    case, device = Case(**task["case"]), torch.device("cpu")
    peer = next(peer for peer in op.peers if peer.name == task["peer"])
    inputs = op.inputs(case, device)
    small = case if peer.compiles else case.reduced()
    warm = peer.prepare(small, op.inputs(small, device))
    warm.run()
    returned = 0.0

    def run() -> Any:
        nonlocal returned
        ready = peer.prepare(case, inputs)
        out = ready.run()
        returned = _returned_mb(ready.results(out))
        return out

    try:
        growth = memory.growth_mb(run)
    except CannotServe as error:
        return {"error": str(error)}
    return {"extra_mb": None if growth is None else max(0.0, growth - returned)}


def _returned_mb(results: Tensors) -> float:
    return sum(tensor.nbytes for tensor in results.values()) / 1e6
