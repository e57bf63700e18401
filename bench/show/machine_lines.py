"""The machine as text: what it is, and what it can do at most."""

from __future__ import annotations

from typing import Any

from bench.measure.ceilings import NAMES, Ceilings


def header(environment: dict[str, Any], ceilings: Ceilings) -> str:
    """Where this runs, with what, and what the machine can do at most."""
    versions = ", ".join(f"{k} {v or 'absent'}" for k, v in environment["versions"].items())
    gpu = environment.get("gpu")
    card = (
        f"{gpu['name']}, {gpu['memory_gb']:.0f} GB, CUDA {gpu['cuda']}; beside it " if gpu else ""
    )
    return card + (
        f"{environment['cpu']}, {environment['cores']} cores, {environment['instruction_set']}, "
        f"{environment['threads']} threads, {environment['system']}\n"
        f"{versions}; commit {environment['commit']}; C++ extension: {environment['extension']}\n"
        + ceiling_line(ceilings)
    )


def ceiling_line(ceilings: Ceilings) -> str:
    """The machine's own rates in one line, those that it has."""
    rates = [
        f"{rate:,.1f} GB/s {NAMES[name]}" if name == "copy_gbs" else f"{rate:,.0f} {NAMES[name]}"
        for name, rate in ceilings.items()
        if rate is not None
    ]
    return "ceilings, GFLOP/s: " + ", ".join(rates)
