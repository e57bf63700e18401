"""The program that every bench_<op>.py is: check, time in turns, measure memory, write, draw."""

from __future__ import annotations

import argparse
import contextlib
import fnmatch
import sys
import time
import warnings
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import harness
import memory
import report
import table
import torch
from compare import Case, Op, Peer, Ready, Tensors
from op_check import Checks, Wrong, why

from pyenc.errors import InputError, PyencError

FULL: dict[str, Any] = {"repeats": 15, "budget": 2.0, "limit": 8.0}
QUICK: dict[str, Any] = {"repeats": 5, "budget": 0.3, "limit": 2.0}
"""How often each peer runs; see `harness.in_turns`."""


def main(op: Op, script: str, argv: Sequence[str] | None = None) -> int:
    """Run the benchmark of one op.

    Returns:
        0; 1 where a peer disagrees with the oracle; 2 for mistakes in the arguments.
    """
    options = _parser(op).parse_args(argv)
    warnings.filterwarnings("ignore", module=r"torch\b.*")
    if options.child:
        memory.report(_measure_memory(op, memory.task()))
        return 0
    try:
        return _run(op, script, options)
    except (PyencError, OSError) as error:
        print(f"pyenc: error: {error}", file=sys.stderr)
        return 2


def _parser(op: Op) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=f"{op.name} beside its peers.")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1 (default: cpu)")
    parser.add_argument("--dtype", action="append", help="may be repeated; default: all of them")
    parser.add_argument("--quick", action="store_true", help="small cases: does it work?")
    parser.add_argument("--cases", metavar="PATTERN", help="only cases whose name matches")
    parser.add_argument("--out", metavar="FILE", help="the JSON file; default: in results/")
    parser.add_argument(
        "--plot", action=argparse.BooleanOptionalAction, default=True, help="draw it as SVG too"
    )
    parser.add_argument("--no-memory", action="store_true", help="time alone, no child processes")
    parser.add_argument("--list", action="store_true", help="list cases and peers, run nothing")
    parser.add_argument(
        "--warm", action="store_true", help="compile what will be timed, time nothing"
    )
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    return parser


def _run(op: Op, script: str, options: argparse.Namespace) -> int:
    device = _device(options.device)
    cases = _chosen(op, options, device)
    if options.list:
        print("\n".join([*(f"{case.name}, {case.dtype}" for case in cases), "peers:"]))
        print("\n".join(f"  {peer.name}" for peer in op.peers))
        return 0
    if options.warm:
        _warm(op, cases, device)
        return 0
    start = time.perf_counter()
    harness.keep_freed_memory()
    environment = harness.environment(op.packages, device)
    result: dict[str, Any] = {
        "op": op.name, "explanation": op.explanation, "quick": options.quick,
        "environment": environment, "ceilings": harness.ceilings(device), "cases": [],
    }  # fmt: skip
    print(report.header(environment, result["ceilings"]))
    if (environment["load_average"] or 0) > 0.5:
        print(f"the machine is not quiet: load average {environment['load_average']}")
    print(f"\n{op.name}: {op.explanation}\n{table.EXPLANATION}", flush=True)
    # A quick look leaves no file behind unless one is asked for: its figures are not for keeping.
    path = None
    if options.out or not options.quick:
        path = harness.result_file(op.name, options.out, device)
    wrong: list[str] = []
    checks = Checks(op, device, options.quick)
    for case in cases:
        found = _run_case(op, case, checks, script, options)
        result["cases"].append(found)
        print(table.case_lines(found, result["ceilings"]), flush=True)
        bad = [name for name, row in found["peers"].items() if not row.get("right", True)]
        wrong += [f"{table.title(found)}: {name}" for name in bad]
        if path is not None:
            harness.write_result(path, result)  # an interrupted run keeps what it has
    if not options.quick:
        result["ceilings_after"] = harness.ceilings(device)
        print(f"\nafterwards: {report.ceiling_line(result['ceilings_after'])}")
    result["seconds"] = time.perf_counter() - start
    print(f"\nall took {result['seconds']:.0f} s")
    if path is not None:
        harness.write_result(path, result)
        print(f"written: {path.name}")
        if options.plot:
            _plot(path)
    for name in wrong:
        print(f"DISAGREES with the float64 oracle: {name}", file=sys.stderr)
    return int(bool(wrong))


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


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
    except RuntimeError:
        raise InputError(f"--device {name!r}: expected cpu, cuda or cuda:N") from None
    if device.type not in ("cpu", "cuda"):
        raise InputError(f"--device {name!r}: expected cpu, cuda or cuda:N")
    if device.type == "cuda":
        if not torch.cuda.is_available() or (device.index or 0) >= torch.cuda.device_count():
            count = torch.cuda.device_count() if torch.cuda.is_available() else 0
            raise InputError(f"--device {name!r}: torch sees {count} CUDA devices here")
        torch.cuda.set_device(device.index or 0)
    return device


def _chosen(op: Op, options: argparse.Namespace, device: torch.device) -> list[Case]:
    for dtype in options.dtype or ():
        if dtype not in op.dtypes:
            raise InputError(f"--dtype {dtype!r}: {op.name} is timed in {', '.join(op.dtypes)}")
    listed = op.cases(options.quick, device)
    pattern = options.cases or "*"
    if not any(mark in pattern for mark in "*?["):
        pattern = f"*{pattern}*"
    dtypes = options.dtype or op.dtypes
    cases = [
        case for case in listed if case.dtype in dtypes and fnmatch.fnmatchcase(case.name, pattern)
    ]
    if not cases:
        names = ", ".join(dict.fromkeys(case.name for case in listed))
        raise InputError(f"--cases {options.cases!r}: no case is named so; there are: {names}")
    return cases


def _run_case(
    op: Op, case: Case, checks: Checks, script: str, options: argparse.Namespace
) -> dict[str, Any]:
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
    seconds = harness.in_turns(
        runs, clock=harness.clock_for(device), **(QUICK if options.quick else FULL)
    )
    checks.forget()
    for name, times in seconds.items():
        rows[name] |= harness.summary(times)
    medians = {name: rows[name]["median"] for name in runs}
    subject = next((peer.name for peer in op.peers if peer.ours and peer.name in runs), None)
    for name, ratio in harness.ratios(medians, subject).items():
        rows[name]["ratio"] = ratio
    if case.memory and not options.no_memory:
        for peer in op.peers:
            if peer.name in runs:
                try:
                    rows[peer.name] |= _memory(op, case, peer, inputs, device, script)
                except Exception as error:  # out of memory, with what the others still hold
                    rows[peer.name]["memory"] = why(error)
    facts = {key: value for key, value in asdict(case).items() if key not in ("small", "memory")}
    return {**facts, "subject": subject, "peers": rows}


def _memory(
    op: Op, case: Case, peer: Peer, inputs: Tensors, device: torch.device, script: str
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
    found = memory.in_child(script, {"case": asdict(case), "peer": peer.name})
    return {"extra_mb": found["extra_mb"]} if "error" not in found else {"memory": found["error"]}


def _measure_memory(op: Op, task: dict[str, Any]) -> dict[str, Any]:
    """The child's side: what preparing and running one peer takes, less what it returns."""
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

    growth = memory.growth_mb(run)
    return {"extra_mb": None if growth is None else max(0.0, growth - returned)}


def _returned_mb(results: Tensors) -> float:
    return sum(tensor.nbytes for tensor in results.values()) / 1e6


def _plot(path: Any) -> None:
    try:
        import plots
    except ImportError:
        print("no plot: matplotlib is not installed")
        return
    for drawn in plots.draw(path):
        print(f"drawn: {drawn.name}")
