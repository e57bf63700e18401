"""Work on candidates in many processes, and which candidates take their process with them, as a
compiler's asserts do."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

from pyenc_kernels.configs import Config

Job = TypeVar("Job")
Result = TypeVar("Result")
What = TypeVar("What")

MOST_WORKERS = 16
"""That compile: on a card each may have a context and inputs of its own."""
AT_ONCE = 4
"""Candidates of a job."""


def over_candidates(
    run: Callable[[tuple[What, list[Config]]], Result], of: dict[What, list[Config]]
) -> tuple[list[Result], set[tuple[What, Config]]]:
    """(what `run` made of all candidates of each, a few at a time; those that ended its process).

    A few whose process ended are gone through again one by one, to find which of them it was.
    """
    jobs = [
        (what, candidates[at : at + AT_ONCE])
        for what, candidates in of.items()
        for at in range(0, len(candidates), AT_ONCE)
    ]
    results, lost = in_processes(run, jobs, min(os.cpu_count() or 1, len(jobs), MOST_WORKERS))
    fatal = set()
    for what, part in lost:
        for config in part:
            alone, ended = in_processes(run, [(what, [config])], 1)
            results += alone
            if ended:
                fatal.add((what, config))
    return results, fatal


def in_processes(
    run: Callable[[Job], Result], jobs: list[Job], workers: int
) -> tuple[list[Result], list[Job]]:
    """(results, in the jobs' order; jobs that didn't come back, because one of them ended its
    process and so the pool)."""
    results: list[Result] = []
    lost: list[Job] = []
    if not jobs:
        return results, lost
    futures: dict[int, Future[Result]] = {}
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
        for number, job in enumerate(jobs):
            with contextlib.suppress(BrokenProcessPool):
                futures[number] = pool.submit(run, job)
        for number, job in enumerate(jobs):
            try:
                results.append(futures[number].result())
            except (KeyError, BrokenProcessPool):
                lost.append(job)
    return results, lost
