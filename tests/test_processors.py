"""`make test-processors`: which settings it runs, skips aloud, and repeats when they fail."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import processors
from tests.processors import ATEN, DEPENDS, HANDFUL, ONEDNN, PYENC, VALUES, Run, Setting

SETTINGS = [
    Setting(ATEN, "default", None, False),
    Setting(ATEN, "avx2", None, True),
    Setting(ONEDNN, "AVX512_CORE", "oneDNN has avx2", False),
    Setting(PYENC, "generic", None, False),
]


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[Run]:
    """Those that were started; the last setting's fail."""
    started: list[Run] = []

    def run(one: Run, *_: object) -> bool:
        started.append(one)
        return one.setting.variable != PYENC

    monkeypatch.setattr(processors, "settings", lambda: iter(SETTINGS))
    monkeypatch.setattr(processors, "run", run)
    return started


def test_all_settings_with_all_seeds(runs: list[Run], capsys: pytest.CaptureFixture[str]) -> None:
    assert processors.main([]) == 1
    here = [each for each in SETTINGS if not each.lacks]
    assert runs == [Run(each, seed) for each in here for seed in processors.SEEDS]
    said = capsys.readouterr().out
    assert "skipped ONEDNN_MAX_CPU_ISA=AVX512_CORE: oneDNN has avx2\n" in said
    assert "9 runs, 3 failed: PYENC_CPU_ISA=generic, seed 20240607; PYENC" in said


def test_the_short_form(runs: list[Run], capsys: pytest.CaptureFixture[str]) -> None:
    assert processors.main(["--short", "--seed", "5"]) == 1
    assert sorted(runs) == [Run(SETTINGS[0], 5), Run(SETTINGS[3], 5)]
    assert "skipped ATEN_CPU_CAPABILITY=avx2: what serves without it\n" in capsys.readouterr().out


def test_a_failure_says_how_to_repeat_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """A pytest of its own: the setting and the seed reach it, and its failure is a failure."""
    test = tmp_path / "test_one.py"
    test.write_text(
        "import os, pytest\n"
        "@pytest.mark.processor\n"
        "def test_it():\n"
        "    assert os.environ['ATEN_CPU_CAPABILITY'] == 'default'\n"
        "    assert 'ONEDNN_MAX_CPU_ISA' not in os.environ\n"
        "    assert os.environ['PYENC_TEST_SEED'] == '7'\n"
    )
    monkeypatch.setenv(ONEDNN, "AVX2")
    monkeypatch.setattr(processors, "DEPENDS", {ATEN: (str(test),)})
    assert processors.run(Run(SETTINGS[0], 7), False, ["-p", "no:randomly"])
    assert capfd.readouterr().out.startswith("passed ATEN_CPU_CAPABILITY=default, seed 7: 1 passed")
    assert not processors.run(Run(SETTINGS[0], 8), False, [])
    said = capfd.readouterr().out
    assert "FAILED ATEN_CPU_CAPABILITY=default, seed 8" in said
    assert "again: ATEN_CPU_CAPABILITY=default PYENC_TEST_SEED=8 python -m pytest -q" in said


@pytest.mark.parametrize("where", [DEPENDS, HANDFUL], ids=["all", "short"])
def test_what_is_run_is_there(where: dict[str, tuple[str, ...]]) -> None:
    assert set(where) == set(VALUES)
    for names in where.values():
        for name in names:
            path, _, function = name.partition("::")
            assert (processors.ROOT / path).exists()
            if function:
                assert f"def {function}(" in (processors.ROOT / path).read_text("utf-8")


def test_this_machines_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VALUES:
        monkeypatch.delenv(name, raising=False)  # restored afterwards
    found = {str(each): each for each in processors.settings()}
    assert len(found) == sum(map(len, VALUES.values()))
    assert found["ATEN_CPU_CAPABILITY=default"].lacks is None
    assert all(not each.lacks or not each.as_it_is for each in found.values())
    for name in VALUES:
        assert sum(each.as_it_is for each in found.values() if each.variable == name) <= 1
