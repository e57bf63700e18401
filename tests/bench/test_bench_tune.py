"""The tuner goes on without what ends a compiler."""

from __future__ import annotations

from typing import Any

import pytest
import torch

pytest.importorskip("triton")

from bench import tune
from pyenc_kernels.configs import Config
from tests.bench.ending import end_at_three


def test_a_job_that_ends_its_process_is_lost_and_alone_it_is_known() -> None:
    lost = tune.unfinished(end_at_three, [1, 2, 3, 4], 1)
    assert 3 in lost  # and whoever waited behind it
    assert tune.unfinished(end_at_three, [1, 2, 4], 1) == []
    assert tune.unfinished(end_at_three, [3], 1) == [3]


def test_of_a_lost_part_the_fatal_candidate_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of its candidates is compiled in a process of its own."""
    kernel, dtype, device = "attention_forward", "bfloat16", torch.device("cpu")
    fatal = tune.candidates_of(kernel, dtype, True)[2]
    asked: list[int] = []

    def unfinished(run: Any, jobs: list[Any], workers: int) -> list[Any]:
        asked.append(sum(len(job[4]) for job in jobs))
        return [job for job in jobs if fatal in job[4]]

    monkeypatch.setattr(tune, "unfinished", unfinished)
    found = tune.compile_all([(kernel, dtype, "64x512"), (kernel, dtype, "64x8192")], device, True)
    assert found == {(kernel, dtype, 64, fatal)}
    assert isinstance(fatal, Config)
    assert asked[0] > tune.AT_ONCE
    assert asked[1:] == [1] * tune.AT_ONCE
