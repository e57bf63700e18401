"""Whole encoders beside what else a user could pick: tokens a second and peak memory, on the CPU.

    python bench/bench_models.py [--quick] [--out FILE]     all cases
    python bench/bench_models.py --long [--quick]           attention alone at 32,768 tokens, memory

The cases, the peers and how to read the figures: README.md beside this file.
"""

from __future__ import annotations

import argparse
import functools
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import harness
import memory
import numpy as np
import peers
import peers_jina
import peers_minilm
import report
import torch
import workloads
from workloads import Case

import pyenc
from pyenc.ops import ALiBi, alibi_slopes, attention

SCRIPT = str(Path(__file__).resolve())
WARM_UP = {"minilm": (64,) * 4, "jina": (256,)}
CHECKED = {"minilm": (128, 128, 128), "jina": (96, 96)}
"""Short enough for the dense float64 oracle."""
ONCE_BEYOND = 20.0
"""Seconds after which a program's first run is its only one."""


def subject(model: str) -> Any:
    """What the peers of a model load from: MiniLM's folder, None if absent; the random weights."""
    return workloads.minilm_folder() if model == "minilm" else workloads.jina_small()


@functools.cache
def _tokenizing() -> pyenc.TextEncoder:
    folder = workloads.minilm_folder()
    assert folder is not None
    return pyenc.load(folder, device="cpu")


def inputs(model: str, lengths: Sequence[int]) -> Any:
    """Texts or token ids of these lengths."""
    if model == "minilm":
        return workloads.texts_of(lengths, _tokenizing())
    return workloads.token_ids(lengths, 30528)


def load_peers(model: str, source: Any) -> tuple[dict[str, Callable[[Any], Any]], dict[str, str]]:
    """(what runs, by name; why not, by name)."""
    runs: dict[str, Callable[[Any], Any]] = {}
    absent: dict[str, str] = {}
    for name, peer in peers.PEERS[model].items():
        try:
            runs[name] = peer.load(source)
        except ImportError:
            absent[name] = "absent"
    return runs, absent


def compare_with_oracle(model: str, source: Any, runs: dict[str, Any]) -> dict[str, float]:
    """Largest difference of each peer from the float64 reference, on short texts."""
    data = inputs(model, CHECKED[model])
    oracle = peers_minilm.oracle(source) if model == "minilm" else peers_jina.oracle(source)
    truth = oracle(data)
    return {
        name: difference(run(data), truth)
        for name, run in runs.items()
        if peers.PEERS[model][name].tolerance is not None
    }


def difference(a: Any, b: Any) -> float:
    """max |a - b|; NaN counts as infinite."""
    a, b = (np.asarray(torch.as_tensor(x).double()) for x in (a, b))
    return float(np.nan_to_num(np.abs(a - b), nan=np.inf).max())


def run_case(
    case: Case, runs: dict[str, Any], absent: dict[str, str], source: Any, with_memory: bool
) -> dict[str, Any]:
    """One case through all peers in turns, then each one's memory in a child process."""
    config = source.config if case.model == "jina" else _tokenizing().model.config
    data, small = inputs(case.model, case.lengths), inputs(case.model, WARM_UP[case.model])
    texts = {"data": data, "small": small} if case.model == "minilm" else {}
    results: dict[str, Any] = {}

    def keeping(name: str) -> Callable[[], None]:
        def run() -> None:
            results[name] = runs[name](data)

        return run

    ragged = len(set(case.lengths)) > 1
    listed = {n: p for n, p in peers.PEERS[case.model].items() if ragged or not p.ragged_only}
    absent = absent | {
        name: f"left out beyond {peer.longest:,} tokens, for its memory"
        for name, peer in listed.items()
        if peer.longest is not None and max(case.lengths) > peer.longest
    }
    timed = {name: keeping(name) for name in listed if name in runs and name not in absent}
    # The first run warms up; it also compiles, where something does.
    first = {name: harness.wall_clock(run) for name, run in timed.items()}
    slow = {n: s for n, s in first.items() if s > ONCE_BEYOND and listed[n].with_memory}
    seconds = harness.in_turns({n: r for n, r in timed.items() if n not in slow}, repeats=5)
    seconds |= {name: [taken] for name, taken in slow.items()}
    found: dict[str, Any] = {}
    for name, peer in listed.items():
        if name in absent:
            found[name] = {"error": absent[name]}
            continue
        ours = peers.subject(case.model, peer.precision)
        found[name] = harness.summary(seconds[name]) | {"precision": peer.precision}
        found[name]["ratio"] = found[name]["median"] / harness.summary(seconds[ours])["median"]
        if name != ours and peer.tolerance is not None:
            found[name]["difference"] = difference(results[name], results[ours])
        if with_memory and peer.with_memory:
            task = {"model": case.model, "lengths": case.lengths, "peer": name} | texts
            found[name] |= memory.in_child(SCRIPT, task)
    return {
        "model": case.model,
        "name": case.name,
        "texts": len(case.lengths),
        "tokens": case.tokens,
        "gflop": workloads.gflop(config, case.lengths),
        "peers": found,
        "best": {kind: best_peer(case.model, kind, found) for kind in peers.PRECISIONS},
    }


def best_peer(model: str, precision: str, found: dict[str, Any]) -> dict[str, Any] | None:
    """The fastest program that computes the same function, ours aside; None without one."""
    ratios = {
        name: result["ratio"]
        for name, result in found.items()
        if result.get("precision") == precision
        and peers.PEERS[model][name].tolerance is not None
        and name != peers.subject(model, precision)
    }
    if not ratios:
        return None
    name = min(ratios, key=lambda name: ratios[name])
    return {"peer": name, "ratio": ratios[name]}


def measure_memory(task: dict[str, Any]) -> dict[str, Any]:
    """The child's side of one (case, peer); texts come from the parent, token ids are made here."""
    model = task["model"]
    small = task.get("small") or inputs(model, WARM_UP[model])
    data = task.get("data") or inputs(model, task["lengths"])
    run = peers.PEERS[model][task["peer"]].load(subject(model))
    run(small)
    return {"peak_mb": memory.growth_mb(lambda: run(data))}


def measure_long(task: dict[str, Any]) -> dict[str, Any]:
    """The child's side of `--long`: attention beyond its inputs and what it returns."""
    n, heads, dim = task["tokens"], 8, 64
    torch.manual_seed(0)
    q, k, v, grad = (torch.randn(n, heads, dim) for _ in range(4))
    bias = ALiBi(alibi_slopes(heads))
    backward = task["backward"]

    def run(size: int) -> list[torch.Tensor]:
        parts = [x[:size].detach().requires_grad_(backward) for x in (q, k, v)]
        out = attention(*parts, torch.tensor([0, size]), bias=bias)
        assert isinstance(out, torch.Tensor)
        if backward:
            out.backward(grad[:size])
        return [out.detach(), *(x.grad for x in parts if x.grad is not None)]

    run(64)
    start = time.perf_counter()
    growth = memory.growth_mb(lambda: run(n))
    returned = (4 if backward else 1) * q.nbytes / 1e6
    beyond = None if growth is None else growth - returned
    return {"peak_mb": beyond, "seconds": time.perf_counter() - start}


def main_long(options: argparse.Namespace) -> int:
    n = 4096 if options.quick else 32768
    result: dict[str, Any] = {"environment": harness.environment(), "tokens": n, "cases": {}}
    dense = 8 * n * n * 4 / 1e6
    print(f"attention at {n:,} tokens, 8 heads of 64, symmetric ALiBi, fp32: peak memory beyond")
    print(f"inputs and outputs. One dense (8, n, n) matrix would take {dense:,.0f} MB.\n")
    for what in ("forward", "forward + backward"):
        task = {"long": True, "tokens": n, "backward": what != "forward"}
        found = memory.in_child(SCRIPT, task, timeout=3600)
        result["cases"][what] = found
        if "error" in found:
            print(f"  {what:20} {found['error']}")
        else:
            took = f"{found['seconds']:.1f} s"
            print(f"  {what:20} {found['peak_mb'] or float('nan'):8,.0f} MB {took:>10}")
    path = harness.result_file("long-attention", options.out)
    harness.write_result(path, result)
    print(f"\nwritten: {path.name}")
    return int(any("error" in found for found in result["cases"].values()))


def main_models(options: argparse.Namespace) -> int:
    start = time.perf_counter()
    environment, ceilings = harness.environment(), harness.ceilings()
    print(report.header(environment, ceilings))
    if (environment["load_average"] or 0) > 0.5:
        print(f"the machine is not quiet: load average {environment['load_average']}")
    result: dict[str, Any] = {"environment": environment, "quick": options.quick}
    result |= {"ceilings": ceilings, "oracle": {}, "cases": []}
    wrong: list[str] = []
    path = harness.result_file("models-quick" if options.quick else "models", options.out)
    wanted = [
        case
        for case in workloads.cases(options.quick)
        if fnmatch(f"{case.model} {case.name}", options.cases)
    ]
    for model in peers.PEERS:
        if not any(case.model == model for case in wanted):
            continue
        source = subject(model)
        if source is None:
            print(f"\n{model}: the checkpoint is absent: pip install 'pyenc[demo]'")
            continue
        runs, absent = load_peers(model, source)
        errors = compare_with_oracle(model, source, runs)
        result["oracle"][model] = errors
        print(f"\n{model}, largest difference from the float64 reference on short texts: ", end="")
        print(", ".join(f"{name} {error:.0e}" for name, error in errors.items()), flush=True)
        allowed = {name: peer.tolerance or 0.0 for name, peer in peers.PEERS[model].items()}
        wrong += [
            f"{model}: {name}" for name, error in errors.items() if not error <= allowed[name]
        ]
        for case in wanted:
            if case.model != model:
                continue
            found = run_case(case, runs, absent, source, not options.no_memory)
            result["cases"].append(found)
            harness.write_result(path, result)  # an interrupted run keeps what it has
            print(report.case_lines(found, ceilings["gemm_gflops"]), flush=True)
            for name, peer in found["peers"].items():
                if not peer.get("difference", 0.0) <= 2 * allowed[name]:
                    wrong.append(f"{model} at {case.name}: {name}")
    result["ceilings_after"] = harness.ceilings()
    result["seconds"] = time.perf_counter() - start
    print(f"\n{report.EXPLANATION}\n{report.markdown(result)}")
    after = result["ceilings_after"]["gemm_gflops"]
    print(f"\nfp32 GEMM afterwards: {after:.0f} GFLOP/s; all took {result['seconds']:.0f} s")
    harness.write_result(path, result)
    print(f"written: {path.name}")
    for name in wrong:
        print(f"DISAGREES more than it may: {name}", file=sys.stderr)
    return int(bool(wrong))


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="few texts, without the longest")
    parser.add_argument("--long", action="store_true", help="attention's memory at 32,768 tokens")
    parser.add_argument("--cases", default="*", help="only those, as 'jina 8,192' or 'minilm*'")
    parser.add_argument("--no-memory", action="store_true", help="time alone, no child processes")
    parser.add_argument("--out", help="the JSON file; default: results/, by processor and date")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    warnings.filterwarnings("ignore", module=r"(transformers|sentence_transformers)\b.*")
    if options.child:
        task = memory.task()
        memory.report(measure_long(task) if task.get("long") else measure_memory(task))
        return 0
    return main_long(options) if options.long else main_models(options)


if __name__ == "__main__":
    sys.exit(main())
