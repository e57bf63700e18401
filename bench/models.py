"""Whole encoders beside what else a user could pick: tokens a second and peak memory.

On the CPU; --device cuda hands over to `card_models`.

The cases, the peers and how to read the figures: README.md beside this file.
"""

from __future__ import annotations

import argparse
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any

from bench import card_models, long_attention, workloads
from bench.chosen import chosen, chosen_device
from bench.compare import CannotServe
from bench.encoder_rows import best_peer, difference, inputs
from bench.measure import ceilings, clock, machine, memory, record
from bench.peers import encoders, pyenc_encoder
from bench.show import drawing, machine_lines, models_table
from bench.subjects import SUBJECTS
from bench.workloads import Case

ONCE_BEYOND = 20.0
"""Seconds after which a program's first run is its only one."""


def peers_of(model: str, dtypes: Sequence[str] | None) -> dict[str, encoders.Peer]:
    """Those of these dtypes, and ours that they are held against; None: all."""
    peers = encoders.PEERS[model]
    if not dtypes:
        return peers
    asked = {encoders.PRECISION_OF[dtype] for dtype in dtypes}
    precisions = {peer.precision for peer in peers.values()} & asked
    ours = {encoders.subject(model, precision) for precision in precisions}
    return {n: peer for n, peer in peers.items() if peer.precision in precisions or n in ours}


def dtypes_of(model: str) -> list[str]:
    """Those that a program of the model is timed in."""
    there = {peer.precision for peer in encoders.PEERS[model].values()}
    return [dtype for dtype, precision in encoders.PRECISION_OF.items() if precision in there]


def load_peers(
    peers: dict[str, encoders.Peer], source: Any
) -> tuple[dict[str, Callable[[Any], Any]], dict[str, str]]:
    """(what runs, by name; why not, by name)."""
    runs: dict[str, Callable[[Any], Any]] = {}
    absent: dict[str, str] = {}
    for name, peer in peers.items():
        try:
            runs[name] = peer.load(source)
        except ImportError:
            absent[name] = "absent"
        except CannotServe as error:
            absent[name] = str(error)
    return runs, absent


def compare_with_oracle(model: str, source: Any, runs: dict[str, Any]) -> dict[str, float]:
    """Largest difference of each peer from the float64 reference, on short texts."""
    data = inputs(model, SUBJECTS[model].checked)
    texts = SUBJECTS[model].texts
    oracle = (pyenc_encoder.texts_oracle if texts else pyenc_encoder.ids_oracle)(source)
    truth = oracle(data)
    return {
        name: difference(run(data), truth)
        for name, run in runs.items()
        if encoders.PEERS[model][name].tolerance is not None
    }


def run_case(
    case: Case,
    peers: dict[str, encoders.Peer],
    runs: dict[str, Any],
    absent: dict[str, str],
    with_memory: bool,
) -> dict[str, Any]:
    """One case through all peers in turns, then each one's memory in a child process."""
    subject = SUBJECTS[case.model]
    config = subject.config()
    data, small = inputs(case.model, case.lengths), inputs(case.model, subject.warm_up)
    texts = {"data": data, "small": small} if subject.texts else {}
    results: dict[str, Any] = {}

    def keeping(name: str) -> Callable[[], None]:
        def run() -> None:
            results[name] = runs[name](data)

        return run

    ragged = len(set(case.lengths)) > 1
    listed = {n: p for n, p in peers.items() if ragged or not p.ragged_only}
    absent = absent | {
        name: f"left out beyond {peer.longest:,} tokens, for its memory"
        for name, peer in listed.items()
        if peer.longest is not None and max(case.lengths) > peer.longest
    }
    absent |= {
        name: f"left out: {peer.wrong_if_ragged}"
        for name, peer in listed.items()
        if ragged and peer.wrong_if_ragged
    }
    timed = {name: keeping(name) for name in listed if name in runs and name not in absent}
    # The first run warms up; it also compiles, where something does.
    first = {name: clock.wall_clock(run) for name, run in timed.items()}
    slow = {n: s for n, s in first.items() if s > ONCE_BEYOND and listed[n].with_memory}
    quick = {n: r for n, r in timed.items() if n not in slow}
    seconds = clock.in_turns(quick, repeats=5, clock=clock.in_a_row)
    seconds |= {name: [taken] for name, taken in slow.items()}
    found: dict[str, Any] = {}
    for name, peer in listed.items():
        if name in absent:
            found[name] = {"error": absent[name]}
            continue
        ours = encoders.subject(case.model, peer.precision)
        found[name] = clock.summary(seconds[name]) | {"precision": peer.precision}
        found[name]["ratio"] = found[name]["median"] / clock.summary(seconds[ours])["median"]
        if name != ours and peer.tolerance is not None:
            found[name]["difference"] = difference(results[name], results[ours])
        if with_memory and peer.with_memory:
            task = {"model": case.model, "lengths": case.lengths, "peer": name} | texts
            found[name] |= memory.in_child(["models"], task)
    return {
        "model": case.model,
        "name": case.name,
        "texts": len(case.lengths),
        "tokens": case.tokens,
        "gflop": workloads.gflop(config, case.lengths),
        "peers": found,
        "best": {kind: best_peer(peers, kind, found) for kind in encoders.PRECISIONS},
    }


def measure_memory(task: dict[str, Any]) -> dict[str, Any]:
    """The child's side of one (case, peer); texts come from the parent, token ids are made here."""
    model = task["model"]
    small = task.get("small") or inputs(model, SUBJECTS[model].warm_up)
    data = task.get("data") or inputs(model, task["lengths"])
    run = encoders.PEERS[model][task["peer"]].load(SUBJECTS[model].source())
    run(small)
    return {"peak_mb": memory.growth_mb(lambda: run(data))}


def main(options: argparse.Namespace) -> int:
    """Run the cases asked for.

    Returns:
        0; 1 where a program disagrees with the oracle or with ours.
    """
    warnings.filterwarnings("ignore", module=r"(transformers|sentence_transformers)\b.*")
    if options.child:
        task = memory.task()
        memory.report(long_attention.measure(task) if task.get("long") else measure_memory(task))
        return 0
    if options.long:
        return long_attention.main(options)
    device = chosen_device(options)
    if device.type == "cuda":
        return card_models.main(options, device)
    cases = chosen(
        workloads.cases(options.quick),
        lambda case: (f"{case.model} {case.name}", dtypes_of(case.model)),
        options,
    )
    if options.list:
        _list(cases, options)
        return 0
    return _run(cases, options)


def _list(cases: Sequence[Case], options: argparse.Namespace) -> None:
    for model in dict.fromkeys(case.model for case in cases):
        names = [f"{model} {case.name}" for case in cases if case.model == model]
        print("\n".join([*names, f"peers of {model}:"]))
        print("\n".join(f"  {name}" for name in peers_of(model, options.dtype)))


def _run(cases: Sequence[Case], options: argparse.Namespace) -> int:
    start = time.perf_counter()
    environment, rates = machine.environment(), ceilings.ceilings()
    print(machine_lines.header(environment, rates))
    if (environment["load_average"] or 0) > 0.5:
        print(f"the machine is not quiet: load average {environment['load_average']}")
    result: dict[str, Any] = {"op": "models", "environment": environment, "quick": options.quick}
    result |= {"ceilings": rates, "oracle": {}, "cases": []}
    result["titles"] = {case.model: SUBJECTS[case.model].title for case in cases}
    wrong: list[str] = []
    path = None
    if options.out or not options.quick:
        path = record.result_file("models", options.out)
    for model in dict.fromkeys(case.model for case in cases):
        source = SUBJECTS[model].source()
        if source is None:
            print(f"\n{model}: the checkpoint is absent: {SUBJECTS[model].absent}")
            continue
        peers = peers_of(model, options.dtype)
        runs, absent = load_peers(peers, source)
        errors = compare_with_oracle(model, source, runs)
        result["oracle"][model] = errors
        print(f"\n{model}, largest difference from the float64 reference on short texts: ", end="")
        print(", ".join(f"{name} {error:.0e}" for name, error in errors.items()), flush=True)
        allowed = {name: peer.tolerance or 0.0 for name, peer in peers.items()}
        wrong += [
            f"{model}: {name}" for name, error in errors.items() if not error <= allowed[name]
        ]
        for case in cases:
            if case.model != model:
                continue
            found = run_case(case, peers, runs, absent, not options.no_memory)
            result["cases"].append(found)
            if path is not None:
                record.write_result(path, result)  # an interrupted run keeps what it has
            print(models_table.case_lines(found, rates["gemm_gflops"] or 0.0), flush=True)
            for name, peer in found["peers"].items():
                if not peer.get("difference", 0.0) <= 2 * allowed[name]:
                    wrong.append(f"{model} at {case.name}: {name}")
    result["ceilings_after"] = ceilings.ceilings()
    result["seconds"] = time.perf_counter() - start
    print(f"\n{models_table.explanation(result)}\n{models_table.markdown(result)}")
    after = result["ceilings_after"]["gemm_gflops"]
    print(f"\nfp32 GEMM afterwards: {after:.0f} GFLOP/s; all took {result['seconds']:.0f} s")
    drawing.keep(path, result, plot=options.plot is not False)
    for name in wrong:
        print(f"DISAGREES more than it may: {name}", file=sys.stderr)
    return int(bool(wrong))
