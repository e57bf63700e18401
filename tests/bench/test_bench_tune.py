"""The tuner goes on without what ends a compiler, and times what a compiler leaves it."""

from __future__ import annotations

from typing import Any

import pytest
import torch

pytest.importorskip("triton")

from bench import processes, pruning, tune
from bench.pruning import SPILLS, Form, Judged
from pyenc_kernels import configs
from pyenc_kernels.configs import Config
from tests.bench.ending import end_at_three

FORM = Form("attention_forward", "bfloat16", 64, 512)


def test_a_job_that_ends_its_process_is_lost_and_alone_it_is_known() -> None:
    results, lost = processes.in_processes(end_at_three, [1, 2, 3, 4], 1)
    assert 3 in lost  # and whoever waited behind it
    assert sorted([*results, *lost]) == [1, 2, 3, 4]
    assert processes.in_processes(end_at_three, [1, 2, 4], 1) == ([1, 2, 4], [])
    assert processes.in_processes(end_at_three, [3], 1) == ([], [3])
    assert processes.in_processes(end_at_three, [], 0) == ([], [])


def test_of_a_lost_part_the_fatal_candidate_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of its candidates is compiled in a process of its own."""
    work = [("attention_forward", "bfloat16", shape) for shape in ("64x512", "64x8192")]
    (form,) = tune.forms_of(work)
    assert (form.kernel, form.dtype, form.width) == ("attention_forward", "bfloat16", 64)
    candidates = tune.candidates_of(form.kernel, form.dtype, True)
    fatal = candidates[2]
    asked: list[int] = []

    def in_processes(run: Any, jobs: list[Any], workers: int) -> tuple[list[Any], list[Any]]:
        asked.append(sum(len(part) for _, part in jobs))
        return [part for _, part in jobs if fatal not in part], [
            job for job in jobs if fatal in job[1]
        ]

    monkeypatch.setattr(processes, "in_processes", in_processes)
    assert tune.compile_all({form: candidates}, torch.device("cpu")) == {(form, fatal)}
    assert isinstance(fatal, Config)
    assert asked[0] > processes.AT_ONCE
    assert asked[1:] == [1] * processes.AT_ONCE
    results, _ = processes.over_candidates(print, {form: candidates})
    assert sum(map(len, results)) == len(candidates) - 1  # those beside it are not lost


def test_a_card_times_what_its_compiler_leaves(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    one, other = Config(128, 64, 8, 3), Config(128, 128, 4, 4)
    asked: list[tuple[str, bool]] = []

    def judged(candidates: Any, architecture: str, *, keep: bool) -> dict[Form, list[Judged]]:
        asked.append((architecture, keep))
        return {FORM: [Judged(one, None, None), Judged(other, None, SPILLS)]}

    monkeypatch.setattr(pruning, "judged", judged)
    monkeypatch.setattr(configs, "keys_of", lambda device: ("A Card", "sm_90", "default"))
    device = torch.device("cuda")
    assert tune.kept_for({FORM: [one, other]}, device) == {FORM: [one]}
    assert "1 of 2 candidates kept; dropped: 1 (more than" in capsys.readouterr().out
    assert asked == [("sm_90", True)]
    monkeypatch.setattr(configs, "keys_of", lambda device: ("Another", "gfx942", "default"))
    assert tune.kept_for({FORM: [one, other]}, device) == {FORM: [one, other]}
    assert "gfx942: nothing is dropped" in capsys.readouterr().out
    assert len(asked) == 1
