"""Attention under each example variant beside FlexAttention, and the time to its first result.

The cases, the peers and how to read the figures: README.md beside this file.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

from bench import attention_data, op
from bench import variant_data as data
from bench.compare import Op, Peer
from bench.measure import memory
from bench.peers import variant_attention as peers
from pyenc.errors import InputError

OURS, FLEX = "pyenc", "FlexAttention, compiled"
EXPLANATION = f"""\
One sequence, H = {data.HEADS}, D = {data.DIM}, scores of std 3; the variants of
examples/variants.py as they begin, with the backward also the gradients of what they learn. GFLOP
as for attention, whatever is left out; "rope + alibi" is learned ALiBi on queries and keys that the
call turns first. The floor: another function, built-in ALiBi."""

FIRST = 512
"""Tokens of the first call."""
SOON = 2.0
"""Seconds that our first call may take."""
LENGTHS = 100
"""How many others, up to twice as long, are called after it."""

PEERS = (
    Peer(OURS, peers.ours(), ours=True, skips=True, share=peers.share),
    Peer("pyenc, skip_eps=0", peers.ours(0.0), ours=True),
    Peer("pyenc, ALiBi built in (a floor)", peers.alibi, computes={"bias": "learned alibi"}),
    Peer(FLEX, peers.flex, compiles=True),
)


def main(options: argparse.Namespace) -> int:
    """Run the benchmark.

    Returns:
        0; 1 where a peer disagrees with the oracle, a first call of ours takes more than `SOON` or
        another length makes anything compile.
    """
    subject = Op(
        "variants", EXPLANATION, data.cases, attention_data.inputs, PEERS, data.oracle,
        data.sampled_oracle, data.sample, ("float32",), ("triton",),
    )  # fmt: skip
    if options.child and "first" in (task := memory.task()):
        memory.report(first_result(**task["first"]))
        return 0
    if options.child:
        raise InputError("variants measures no memory: its cases are attention's")
    return op.run(subject, options, torch.device("cpu"), first_results)


def first_results(cases: Sequence[Any], quick: bool) -> tuple[dict[str, Any], list[str]]:
    """Of each variant among the cases in a process of its own; and what is not as promised."""
    found: dict[str, Any] = {}
    missed: list[str] = []
    wanted = dict.fromkeys((case.kind["bias"], case.backward) for case in cases)
    print(f"\nfirst call, n = {FIRST}, in a process of its own, imports done; then other lengths")
    for name, backward in wanted:
        for peer in PEERS[:1] if quick or backward else (PEERS[0], PEERS[-1]):
            lengths = LENGTHS if peer.ours else 0
            task = {"name": name, "backward": backward, "peer": peer.name, "lengths": lengths}
            got = memory.in_child(["variants"], {"first": task})
            what = f"{name}{' forward+backward' if backward else ''}, {peer.name}"
            found[what] = got
            if "error" in got:
                missed.append(f"{what}: {got['error']}")
                continue
            print(
                f"  {what}: {got['first']:.2f} s, then {got['second']:.3f} s"
                + (f"; {got['compiled']} compilations over {lengths} lengths" if lengths else ""),
                flush=True,
            )
            missed += shortfalls(what, got) if peer.ours else []
    return {"first_results": found}, missed


def shortfalls(what: str, got: dict[str, Any]) -> list[str]:
    """What of a measured first call of ours is not as promised."""
    said = []
    if not got["first"] < SOON:
        said.append(f"{what}: the first call took {got['first']:.2f} s, more than {SOON:.0f}")
    if got["compiled"]:
        said.append(f"{what}: {got['compiled']} compilations over {LENGTHS} lengths")
    return said


def first_result(name: str, backward: bool, peer: str, lengths: int) -> dict[str, Any]:
    """Seconds of the first call, preparations included, and of the second; compilations over so
    many other lengths."""
    (chosen,) = (each for each in PEERS if each.name == peer)

    def runner(n: int) -> Callable[[], Any]:
        case = data.case_of(name, n, backward)
        return chosen.prepare(case, attention_data.inputs(case, torch.device("cpu"))).run

    case = data.case_of(name, FIRST, backward)
    inputs = attention_data.inputs(case, torch.device("cpu"))
    start = time.perf_counter()
    run = chosen.prepare(case, inputs).run
    run()
    between = time.perf_counter()
    run()
    end = time.perf_counter()
    drawn = random.Random(0).sample(range(1, 2 * FIRST), lengths)
    return {
        "first": between - start, "second": end - between,
        "compiled": compilations(lambda: [runner(n)() for n in drawn]),
    }  # fmt: skip


def compilations(run: Callable[[], Any]) -> int:
    """How many graphs and Triton kernels are compiled in `run`, where either is there."""
    before = _compiled()
    run()
    return _compiled() - before


def _compiled() -> int:
    count = 0
    if "torch._dynamo" in sys.modules:
        count += int(torch._dynamo.utils.counters["stats"]["unique_graphs"])
    jit = sys.modules.get("triton.runtime.jit")
    for kernel in _kernels() if jit is not None else ():
        caches = getattr(kernel, "device_caches", {})
        count += sum(len(cache[0]) for cache in caches.values())
    return count


def _kernels() -> list[Any]:
    """All of ours that Triton may have compiled."""
    modules = [m for n, m in sys.modules.items() if n.startswith("pyenc_kernels")]
    found = {id(x): x for module in modules for x in vars(module).values()}
    return [x for x in found.values() if hasattr(x, "device_caches")]
