"""What is compared: cases, peers, and when a peer's answer is right."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pyenc.ops.attention.terms import SKIP_EPS

Kind = dict[str, Any]
"""What makes a case, in words and numbers that JSON can carry into another process."""
Tensors = dict[str, Tensor]
"""Inputs or results by name."""


class CannotServe(Exception):
    """Why a peer does not run a case, in a few words."""


@dataclass(frozen=True)
class Case:
    """One op on inputs of one kind."""

    name: str
    kind: Kind
    """`work` in it is what time grows with: the small case tells how long this one takes."""
    dtype: str
    """"float32", "bfloat16" or "float16"."""
    small: Kind = field(default_factory=dict)
    """Changes that make a small case of the same kind, for the dense oracle."""
    gflop: float = 0.0
    """Arithmetic, by the op's convention; 0 where only bytes count."""
    gigabytes: float = 0.0
    """Read and written at least; 0 where only arithmetic counts."""
    backward: bool = False
    memory: bool = False
    """Whether extra memory is measured."""
    series: str = ""
    """Cases of one series make a line over `at` in the plots."""
    at: int = 0

    @property
    def torch_dtype(self) -> torch.dtype:
        return getattr(torch, self.dtype)

    def reduced(self) -> Case:
        return replace(self, kind={**self.kind, **self.small})


class Ready(NamedTuple):
    """A peer that stands ready for one case."""

    run: Callable[[], Any]
    """What is timed."""
    results: Callable[[Any], Tensors] = lambda out: {"out": out}
    """What `run` returned as the oracle has it: names, layouts."""


@dataclass(frozen=True)
class Peer:
    """A program that computes the op."""

    name: str
    prepare: Callable[[Case, Tensors], Ready]
    """Raises CannotServe, ImportError, or what pyenc says when a backend cannot."""
    ours: bool = False
    of: str = ""
    """The only `kind["op"]` that it is a peer of, where a program times several; "": any."""
    computes: Kind = field(default_factory=dict)
    """Changes to the case that make what it computes: a floor computes something else."""
    skips: bool = False
    """Leaves out what the default skip_eps allows it to."""
    share: Callable[[Case, Tensors], float | None] | None = None
    """Share of (query, key) tiles that it computes."""
    compiles: bool = False
    """Compiles for each shape at its first call, for many seconds; left out of a quick look."""


@dataclass(frozen=True)
class Op:
    """One op with its cases, oracle and peers; the first of ours that serves is the subject."""

    name: str
    explanation: str
    """How its figures are counted; printed above the table."""
    cases: Callable[[bool, torch.device], list[Case]]
    """(quick, device)"""
    inputs: Callable[[Case, torch.device], Tensors]
    peers: Sequence[Peer]
    oracle: Callable[[Case, Tensors, torch.dtype], Tensors]
    """The reference in a dtype; from inputs of that dtype or another."""
    sampled: Callable[[Case, Tensors, torch.dtype], Tensors] | None = None
    """The same on a sample, for cases of full size; None: `oracle` serves those too."""
    sample: Callable[[Case, Tensors], Tensors] = lambda case, results: results
    """The same sample from a peer's results."""
    dtypes: tuple[str, ...] = ("float32", "bfloat16")
    packages: tuple[str, ...] = ()
    """Whose versions are recorded."""


@dataclass(frozen=True)
class Verdict:
    """How far a peer is from the oracle, and how far it may be."""

    error: float
    allowed: float

    @property
    def right(self) -> bool:
        return self.error <= self.allowed  # false for NaN


def judge(case: Case, got: Tensors, naive: Tensors, oracle: Tensors, skipped: float) -> Verdict:
    """The project's rule: the first result that breaks it, else the one nearest to.

    In fp32 1e-5 * max(1, max|oracle|), in any dtype twice (gradients: three times) what the naive
    computation in it is off, and `skipped` more for results that are not gradients.
    """
    worst = Verdict(0.0, 1.0)
    for name, truth in oracle.items():
        gradient = name.startswith("d")
        error = difference(got[name], truth)
        allowed = (3 if gradient else 2) * difference(naive[name], truth)
        if case.dtype == "float32":
            allowed = max(allowed, 1e-5 * max(1.0, float(truth.abs().max())))
        allowed += 0.0 if gradient else skipped
        verdict = Verdict(error, allowed)
        if not verdict.right:
            return verdict
        if error * worst.allowed > worst.error * allowed:
            worst = verdict
    return worst


def difference(a: Tensor, b: Tensor) -> float:
    """max |a - b|, NaN where there is one."""
    assert a.shape == b.shape, f"shapes {tuple(a.shape)} and {tuple(b.shape)}"
    return float((a.detach().double() - b.detach().double()).abs().max()) if a.numel() else 0.0


def skipped_bound(case: Case, inputs: Tensors) -> float:
    """2 * eps * max|v|: how far leaving out far keys may move an output."""
    return 2 * SKIP_EPS[getattr(torch, case.dtype)] * float(inputs["v"].abs().max())
