"""Whether a peer serves a case, is right, and is quick enough to be timed."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import torch

from bench.compare import CannotServe, Case, Op, Peer, Ready, Tensors, Verdict, judge, skipped_bound
from bench.measure import clock
from pyenc.errors import BackendError

LIMIT = {False: 60.0, True: 10.0}
"""Seconds that one run may take, by --quick; what would take longer is listed as too slow."""


class Wrong(Exception):
    """A peer disagrees with the oracle."""


class Checks:
    """The checks of one op on one device; oracles are computed once for all peers of a case."""

    def __init__(self, op: Op, device: torch.device, quick: bool) -> None:
        self.op, self.device, self.quick = op, device, quick
        self.truths: dict[str, tuple[Tensors, Tensors]] = {}
        self.seconds: dict[str, float] = {}
        """What a small case took, by peer and small case: lengths apart, many cases share one."""

    def check(self, peer: Peer, case: Case, inputs: Tensors) -> tuple[Ready, Verdict]:
        """The peer standing ready, and how far it is from the oracle on the timed inputs.

        Raises:
            Wrong: on a small case of the same kind it is off by more than the bound.
            CannotServe: by the small case's time the timed one would take too long.
        """
        if peer.compiles and self.quick:
            raise CannotServe("left out of a quick look: it compiles for many seconds")
        self._small(peer, case)
        ready = peer.prepare(case, inputs)
        results = self.op.sample(case, ready.results(ready.run()))
        return ready, self._judge(peer, case, inputs, results, sampled=True)

    def forget(self) -> None:
        """Drop the oracles of a case."""
        self.truths.clear()

    def _small(self, peer: Peer, case: Case) -> None:
        small = case.reduced()
        key = f"{peer.name} {case.dtype} {case.backward} {json.dumps(small.kind)}"
        if key not in self.seconds:
            inputs = self.op.inputs(small, self.device)
            ready = peer.prepare(small, inputs)
            verdict = self._judge(peer, small, inputs, ready.results(ready.run()), sampled=False)
            if not verdict.right:
                far, bound = f"{verdict.error:.1e}", f"{verdict.allowed:.1e}"
                raise Wrong(f"off by {far} on a small case, allowed {bound}")
            # The fastest of several: what a busy machine adds would be multiplied below.
            timed = clock.in_turns(
                {key: ready.run}, repeats=5, budget=0.5, clock=clock.clock_for(self.device)
            )
            self.seconds[key] = min(timed[key])
        expected = self.seconds[key] * case.kind["work"] / small.kind["work"]
        if expected > LIMIT[self.quick]:
            raise CannotServe(f"too slow: about {expected:,.0f} s a run")

    def _judge(
        self, peer: Peer, case: Case, inputs: Tensors, results: Tensors, *, sampled: bool
    ) -> Verdict:
        computed = replace(case, kind={**case.kind, **peer.computes})
        key = f"{sampled} {json.dumps(computed.kind)}"
        if key not in self.truths:
            oracle = (self.op.sampled if sampled else None) or self.op.oracle
            wide = oracle(computed, inputs, torch.float64)
            self.truths[key] = wide, oracle(computed, inputs, case.torch_dtype)
        wide, naive = self.truths[key]
        return judge(case, results, naive, wide, skipped_bound(case, inputs) if peer.skips else 0.0)


def why(error: Exception) -> str:
    """Why a peer is not among the figures, in one line."""
    if isinstance(error, ImportError):
        return f"absent: {error.name or 'its package'} is not installed"
    first: Any = (str(error).strip().splitlines() or [""])[0]
    if isinstance(error, CannotServe | BackendError):
        return f"cannot serve: {first}"
    return f"cannot serve: {type(error).__name__}: {first}"[:160]
