"""Two runs of `pyenc embed` into one output: the second is refused, and parts that changed are."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli_support import TEXTS, Cli, waiting

import pyenc
from pyenc.cli import alone as lock
from pyenc.cli import work
from pyenc.cli.parts import Part, Parts
from pyenc.cli.tally import Tally
from pyenc.errors import InputError

Fails = Callable[..., str]


@pytest.fixture
def first(bert: Path, tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A run that has parts and waits for more of its input."""
    process = waiting(bert, tmp_path)
    yield process
    process.kill()
    process.communicate(timeout=60)


def state(folder: Path) -> dict[str, bytes]:
    return {str(p): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_a_second_run_is_refused_and_touches_nothing(
    fails: Fails, first: subprocess.Popen[bytes], bert: Path, texts_file: Path, tmp_path: Path
) -> None:
    out = tmp_path / "o.npy"
    before = state(tmp_path)
    for words in ([], ["--resume"], ["--overwrite"], ["--overwrite", "--resume"]):
        message = fails("embed", bert, texts_file, "-o", out, *words)
        assert f"{out} is in use by another run (pid {first.pid})" in message
    # By another way there, too.
    (tmp_path / "link").symlink_to(tmp_path)
    assert "is in use" in fails("embed", bert, texts_file, "-o", tmp_path / "link" / "o.npy")
    (tmp_path / "link").unlink()
    assert state(tmp_path) == before
    _, said = first.communicate(b"the end\n", timeout=60)
    assert first.returncode == 0, said
    assert np.load(out).shape == (1201, 64)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["o.npy", "texts.txt"]


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
def test_the_lock_ends_with_its_process(
    cli: Cli, first: subprocess.Popen[bytes], bert: Path, texts_file: Path, tmp_path: Path
) -> None:
    first.send_signal(signal.SIGKILL)
    first.wait(timeout=60)
    assert (tmp_path / "o.npy.partial.lock").read_bytes() == b"pid %d\n" % first.pid
    assert cli("embed", bert, texts_file, "-o", tmp_path / "o.npy", "--overwrite").status == 0
    assert sorted(p.name for p in tmp_path.iterdir()) == ["o.npy", "texts.txt"]


def test_a_lock_removed_while_it_was_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its file is opened anew: a lock on the old one would shut nobody out."""
    out, locked, calls = tmp_path / "o.npy", lock._locked, list[int]()

    def late(number: int) -> bool:
        calls.append(number)
        if len(calls) == 1:
            (tmp_path / "o.npy.partial.lock").unlink()
        return locked(number)

    monkeypatch.setattr(lock, "_locked", late)
    with lock.alone(out):
        assert len(calls) == 2
        with pytest.raises(InputError, match=rf"in use by another run \(pid {os.getpid()}\)"):
            lock.alone(out).__enter__()
    assert not list(tmp_path.iterdir())


def test_a_file_of_somebody_else_is_left_alone(
    fails: Fails, bert: Path, texts_file: Path, tmp_path: Path
) -> None:
    path = tmp_path / "o.npy.partial.lock"
    path.write_text("thesis")
    message = fails("embed", bert, texts_file, "-o", tmp_path / "o.npy", "--overwrite")
    assert f"{path}: a file that pyenc did not make" in message
    assert path.read_text() == "thesis"


def changed_rows(folder: Path) -> None:
    path = folder / "part-000001.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "rows": [6, 7, 8]}))


def changed_vectors(folder: Path) -> None:
    np.save(folder / "part-000001.npy", np.zeros((3, 64), np.float32))


def other_run(folder: Path) -> None:
    """What a run that began at another row writes."""
    for suffix in ("json", "npy"):
        (folder / f"part-000002.{suffix}").replace(folder / f"part-000001.{suffix}")


@pytest.mark.parametrize("change", [changed_rows, changed_vectors, other_run])
@pytest.mark.parametrize("suffix", [".npy", ".jsonl", ".parquet"])
def test_parts_that_somebody_changed_are_no_output(
    fails: Fails,
    bert: Path,
    texts_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    change: Callable[[Path], None],
    suffix: str,
) -> None:
    """As where the file system has no locks."""
    monkeypatch.setattr(work, "UNIT_TEXTS", 3)
    monkeypatch.setattr(work, "PART_SECONDS", 0.0)
    out, embed = tmp_path / f"o{suffix}", work.embed

    def then(*args: Any, **options: Any) -> Tally:
        tally = embed(*args, **options)
        change(tmp_path / f"o{suffix}.partial")
        return tally

    monkeypatch.setattr(work, "embed", then)
    message = fails("embed", bert, texts_file, "-o", out)
    assert f"{out}.partial" in message
    assert "--overwrite" in message
    assert not out.exists()


@pytest.mark.parametrize(("rows", "texts"), [([0, 1, 1], 3), ([2, 1, 3], 3), ([0, 1, 2], 4)])
def test_rows_ascend_and_are_as_many_as_were_counted(
    tmp_path: Path, rows: list[int], texts: int
) -> None:
    parts = Parts(tmp_path / "o.npy")
    parts.start({})
    parts.add(np.zeros((3, 2), np.float32), Part("0" * 64, rows, None))
    with pytest.raises(InputError, match="changed by somebody else"):
        parts.check(texts, 0)


def test_a_file_system_without_locks(
    cli: Cli, bert: Path, texts_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fcntl = pytest.importorskip("fcntl")

    def none(number: int, what: int) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(fcntl, "flock", none)
    out = tmp_path / "o.npy"
    assert cli("embed", bert, texts_file, "-o", out).status == 0
    np.testing.assert_allclose(np.load(out), pyenc.load(bert).encode(TEXTS), atol=2e-6)
