"""A forked child never waits for threads that stayed with its parent: one thread, one warning.

Every scenario runs in one subprocess a backend (tests/forked.py), each child under a time limit.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pyenc.ops import extension

ROOT = Path(__file__).resolve().parents[1]

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")


@pytest.fixture(scope="module", params=["cpu", "torch"])
def told(request: pytest.FixtureRequest) -> dict[str, Any]:
    if request.param == "cpu" and extension.why_missing():
        pytest.skip(extension.why_missing())
    # The library's own threads are asked for too, which it then insists on in a child.
    environment = os.environ | {"TOKENIZERS_PARALLELISM": "true", "OMP_WAIT_POLICY": "passive"}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(ROOT / "kernels")])
    done = subprocess.run(
        [sys.executable, str(ROOT / "tests" / "forked.py"), request.param],
        env=environment, cwd=ROOT, capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    answers: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answers


def one_thread_and_one_warning(answer: dict[str, Any]) -> None:
    assert "off" in answer, answer
    assert answer["off"] < 1e-5
    assert answer["threads"] == 1
    (message,) = answer["warnings"]
    assert "forked from one that computed on 2 threads" in message


@pytest.mark.parametrize(
    "way", ["encode", "load", "in_a_thread", "multiprocessing", "data_loader", "clamped"]
)
def test_one_thread_and_one_warning(told: dict[str, Any], way: str) -> None:
    one_thread_and_one_warning(told[way])


def test_the_warning_is_at_the_caller(told: dict[str, Any]) -> None:
    assert told["encode"]["at"] == ["forked.py"]


def test_gradients(told: dict[str, Any]) -> None:
    assert told["backward"].get("gradient", 0) > 0, told["backward"]


def test_more_threads_when_they_are_asked_for(told: dict[str, Any]) -> None:
    """The child has a team of its own then, in torch's operations as in ours."""
    for answer in (told["raised"], told["from_a_thread"], told["raised_nested"]["outer"]):
        assert "off" in answer, answer
        assert answer["off"] < 1e-5
        assert answer["threads"] == 2
        assert answer["gradient"] > 0
        assert not answer["warnings"]


def test_a_child_of_a_child(told: dict[str, Any]) -> None:
    one_thread_and_one_warning(told["nested"]["outer"])
    inner = told["nested"]["inner"]
    # Its own parent computed on one thread: nothing has changed for it.
    assert (inner["threads"], inner["warnings"]) == (1, []), inner
    one_thread_and_one_warning(told["raised_nested"]["inner"])


def test_a_runtime_that_keeps_its_team(told: dict[str, Any]) -> None:
    """Then more threads than one would wait for ever: what was set is taken back, and said."""
    one_thread_and_one_warning(told["clamped_raised"])
    assert "start processes by 'spawn'" in told["clamped_raised"]["warnings"][0]


def test_nothing_to_say_where_nothing_changes(told: dict[str, Any]) -> None:
    assert (told["one_thread"]["threads"], told["one_thread"]["warnings"]) == (1, [])


def test_locks_are_free(told: dict[str, Any]) -> None:
    assert told["lock"] == {"free": True}


def test_the_parent_is_as_it_was(told: dict[str, Any]) -> None:
    assert told["parent"]["threads"] == 2
    assert told["parent"]["off"] == 0
    assert not told["parent"]["warnings"]
