"""`pyenc bench`: finding the programs, handing arguments on, and one real run of a small op."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from cli_support import Cli

from pyenc.cli import bench

STUB = '''\
"""A stub of {op}.

More.
"""
import json, os, sys
with open({log!r}, "a") as file:
    file.write(json.dumps([{op!r}, *sys.argv[1:]]) + "\\n")
sys.exit({status})
'''


@pytest.fixture
def stubs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[list[str]]]:
    """Programs that write down how they were called; the returned function reads it."""
    log = tmp_path / "log"
    (tmp_path / "bench").mkdir()
    for op, status in (("models", 0), ("norm", 1), ("rotary", 0)):
        program = STUB.format(op=op, log=str(log), status=status)
        (tmp_path / "bench" / f"bench_{op}.py").write_text(program)
    monkeypatch.setattr(bench, "ROOT", tmp_path)
    return lambda: [json.loads(line) for line in log.read_text().splitlines()]


def test_without_an_op_they_are_listed(cli: Cli, stubs: object) -> None:
    said = cli("bench")
    assert said.status == 0
    assert [line.split()[0] for line in said.out.splitlines()] == [
        "models",
        "norm",
        "rotary",
        "all",
    ]
    assert "A stub of norm." in said.out


def test_arguments_are_handed_on(cli: Cli, stubs: Callable[[], list[list[str]]]) -> None:
    words = ["--device", "cuda", "--dtype", "float32", "--dtype", "bfloat16", "--quick"]
    assert cli("bench", "rotary", *words, "--no-plot", "--out", "x.json").status == 0
    assert cli("bench", "models", "--quick", "--", "--long").status == 0
    first, second = stubs()
    assert first[0] == "rotary"
    assert set(words) | {"--no-plot", "--out", "x.json"} == set(first[1:])
    assert first.count("--dtype") == 2
    assert second == ["models", "--quick", "--long"]


def test_all_goes_on_after_a_failure(cli: Cli, stubs: Callable[[], list[list[str]]]) -> None:
    assert cli("bench", "norm").status == 1
    assert cli("bench", "all", "--quick", "--dtype", "float32").status == 1
    assert [call[0] for call in stubs()] == ["norm", "models", "norm", "rotary"]
    assert stubs()[1] == ["models", "--quick"]


def test_whole_models_stay_on_the_cpu(cli: Cli, stubs: Callable[[], list[list[str]]]) -> None:
    said = cli("bench", "all", "--device", "cuda")
    assert "models: left out" in said.out
    calls = stubs()
    assert sorted(call[0] for call in calls[:2]) == ["norm", "rotary"]  # both at once
    assert all("--warm" in call for call in calls[:2])
    assert [call[0] for call in calls[2:]] == ["norm", "rotary"]
    assert not any("--warm" in call for call in calls[2:])


def test_mistakes(fails: Callable[..., str], stubs: object) -> None:
    assert "there are: models, norm, rotary, all" in fails("bench", "abacus")
    assert "--out names one file" in fails("bench", "all", "--out", "x.json")
    assert "does not take --device" in fails("bench", "models", "--device", "cuda")


def test_without_the_repository(
    fails: Callable[..., str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(bench, "ROOT", tmp_path)
    for argv in (["bench"], ["bench", "attention"], ["bench", "all"]):
        assert "the benchmarks are in the repository" in fails(*argv)


def test_a_quick_look(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From checking to the JSON file and its plot, on the smallest op."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # a busy machine makes a second one wait
    out = tmp_path / "rotary.json"
    argv = ["bench", "rotary", "--quick", "--dtype", "float32", "--cases", "*T=512", "--out", out]
    assert cli(*argv).status == 0
    result = json.loads(out.read_text())
    (case,) = result["cases"]
    assert case["subject"].startswith("pyenc")
    assert case["peers"][case["subject"]]["ratio"] == 1.0
    assert all("median" in row or "error" in row for row in case["peers"].values())
    assert "cannot serve" in case["peers"]["torch, compiled rotate_half"]["error"]
    assert result["ceilings"]["copy_gbs"] > 0
    assert {"commit", "command", "cpu", "versions"} <= result["environment"].keys()


def test_a_device_that_is_not_there(cli: Cli) -> None:
    assert cli("bench", "rotary", "--device", "cuda:99").status == 2
