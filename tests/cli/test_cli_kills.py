"""What a kill costs is seconds: parts close by time, signals and full disks leave what is done."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import pytest
from cli_support import TEXTS, Cli, waiting

import pyenc
from pyenc.cli import files, info, main, work
from pyenc.cli.signals import Stopped

Fails = Callable[..., str]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten seconds go by with every text that is encoded."""
    now = [0.0]
    encode = pyenc.TextEncoder.encode

    def timed(encoder: pyenc.TextEncoder, texts: list[str], **options: Any) -> Any:
        now[0] += 10.0 * len(texts)
        return encode(encoder, texts, **options)

    monkeypatch.setattr(pyenc.TextEncoder, "encode", timed)
    monkeypatch.setattr(work, "CLOCK", lambda: now[0])


@pytest.mark.parametrize(("seconds", "parts"), [(5.0, 10), (25.0, 4), (1000.0, 1)])
def test_parts_close_by_time(
    cli: Cli,
    tmp_path: Path,
    bert: Path,
    texts_file: Path,
    monkeypatch: pytest.MonkeyPatch,
    clock: None,
    seconds: float,
    parts: int,
) -> None:
    monkeypatch.setattr(work, "UNIT_TEXTS", 1)
    monkeypatch.setattr(work, "PART_SECONDS", seconds)
    made: list[int] = []
    add = work.Parts.add

    def spy(self: work.Parts, vectors: np.ndarray, part: work.Part) -> None:
        made.append(len(vectors))
        add(self, vectors, part)

    monkeypatch.setattr(work.Parts, "add", spy)
    assert cli("embed", bert, texts_file, "-o", tmp_path / "o.npy").status == 0
    assert len(made) == parts
    assert sum(made) == len(TEXTS)


@pytest.mark.parametrize("suffix", [".npy", ".jsonl", ".parquet"])
def test_the_clock_moves_no_bit_of_the_output(
    cli: Cli,
    tmp_path: Path,
    bert: Path,
    texts_file: Path,
    monkeypatch: pytest.MonkeyPatch,
    suffix: str,
) -> None:
    monkeypatch.setattr(work, "UNIT_TEXTS", 3)
    outs = [tmp_path / f"{i}{suffix}" for i in range(2)]
    for out, seconds in zip(outs, (0.0, 1000.0), strict=True):
        monkeypatch.setattr(work, "PART_SECONDS", seconds)
        assert cli("embed", bert, texts_file, "-o", out).status == 0
    assert outs[0].read_bytes() == outs[1].read_bytes()


def test_units_are_cut_by_tokens(jina: Path) -> None:
    """About two batches; a text beyond the maximum length counts as what is kept of it."""
    words = [work.Row(i, None, "four " * 100) for i in range(200)]
    long = [work.Row(i, None, "four " * 10_000) for i in range(200)]
    script = [work.Row(i, None, "東京" * 100) for i in range(200)]
    assert {len(unit) for unit in list(work._units(words, 8192, 512))[:-1]} == {65}
    assert {len(unit) for unit in list(work._units(long, 8192, 512))[:-1]} == {16}
    assert {len(unit) for unit in list(work._units(script, 8192, 512))[:-1]} == {54}
    encoder = pyenc.load(jina)
    options = {"batch_tokens": None, "max_length": None}
    assert work._budget(encoder, options) == 2 * 4096
    assert work._budget(encoder, {**options, "batch_tokens": 9}) == 2 * 4096
    assert work._budget(encoder, {**options, "batch_tokens": 10_000}) == 20_000
    assert work._limit(encoder, {**options, "max_length": 9}) == 9
    rows = [*words, *long, *script]
    assert [row for unit in work._units(rows, 8192, 512) for row in unit] == rows


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
@pytest.mark.parametrize(
    ("number", "status", "word"),
    [
        (signal.SIGTERM, 143, "terminated"),
        (signal.SIGINT, 130, "interrupted"),
        (signal.SIGHUP, 129, "terminated"),
    ],
)
def test_signals(
    cli: Cli,
    tmp_path: Path,
    bert: Path,
    texts_file: Path,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
    number: signal.Signals,
    status: int,
    word: str,
) -> None:
    """What is done is kept, though its part was not full, and the hint says so."""
    # A background job is started with some of them ignored, as nohup does: tests too may be one.
    plain = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
    inherited = signal.signal(number, plain)
    request.addfinalizer(lambda: signal.signal(number, inherited))
    monkeypatch.setattr(work, "UNIT_TEXTS", 4)
    call, calls = work._Worker.__call__, list[int]()

    def signalled(self: Any, unit: Any) -> Any:
        calls.append(len(unit))
        if len(calls) == 3:
            os.kill(os.getpid(), number)
        return call(self, unit)

    out = tmp_path / "o.npy"
    with monkeypatch.context() as patch:
        patch.setattr(work._Worker, "__call__", signalled)
        said = cli("embed", bert, texts_file, "-o", out)
    assert said.status == status
    assert said.err == (
        f"pyenc: {word}; 8 texts are kept in {out}.partial; the same command with --resume goes on"
        "\n"
    )
    assert not out.exists()
    said = cli("embed", bert, texts_file, "-o", out, "--resume")
    assert "2 texts embedded and 8 resumed" in said.err
    np.testing.assert_allclose(np.load(out), pyenc.load(bert).encode(TEXTS), atol=2e-6)


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
def test_a_signal_from_outside(bert: Path, tmp_path: Path) -> None:
    """While the process waits for more of its input."""
    process = waiting(bert, tmp_path)
    process.terminate()
    _, said = process.communicate(timeout=60)
    assert process.returncode == 143
    assert b"texts are kept in o.npy.partial; the same command with --resume" in said
    assert b"Traceback" not in said
    assert (tmp_path / "o.npy.partial" / "part-000000.npy").exists()


def test_the_status_of_a_signal(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    def terminated(args: object) -> int:
        os.kill(os.getpid(), signal.SIGTERM)
        return 0

    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(info, "run", terminated)
    assert cli("info", "x") == (143, "", "pyenc: terminated\n")
    assert signal.getsignal(signal.SIGTERM) is before


def test_whoever_ignores_a_signal_goes_on(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    def hung_up(args: object) -> int:
        os.kill(os.getpid(), signal.SIGHUP)
        return 0

    monkeypatch.setattr(info, "run", hung_up)
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert cli("info", "x").status == 0
    finally:
        signal.signal(signal.SIGHUP, before)


def test_stopped_before_anything_is_done(
    cli: Cli, tmp_path: Path, bert: Path, texts_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(self: object, unit: object) -> None:
        raise Stopped

    monkeypatch.setattr(work._Worker, "__call__", stop)
    said = cli("embed", bert, texts_file, "-o", tmp_path / "o.npy")
    assert said.status == 143
    assert "nothing is kept yet; the same command with --resume starts again" in said.err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["texts.txt"]


@contextlib.contextmanager
def files_of(size: int) -> Iterator[None]:
    """No file may grow beyond a size: what a full disk does, by the system itself."""
    resource = pytest.importorskip("resource", reason="limits of POSIX")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


LIMIT = 15_000
"""Bytes. Of 800 texts the smallest output (Parquet) takes 30,000, a part 5,000."""


@pytest.mark.parametrize("suffix", [".npy", ".jsonl", ".parquet"])
def test_a_file_beyond_its_limit(
    fails: Fails,
    cli: Cli,
    tmp_path: Path,
    bert: Path,
    texts_file: Path,
    monkeypatch: pytest.MonkeyPatch,
    suffix: str,
) -> None:
    """The parts fit, the output does not; by far, for the manifest holds paths of any length."""
    monkeypatch.setattr(work, "UNIT_TEXTS", 20)
    monkeypatch.setattr(work, "PART_SECONDS", 0.0)
    texts_file.write_text("\n".join(f"text {i}" for i in range(800)) + "\n")
    out = tmp_path / f"o{suffix}"
    with files_of(LIMIT):
        message = fails("embed", bert, texts_file, "-o", out)
    assert f"{out}.partial/output{suffix}: File too large" in message
    assert "800 texts are kept" in message
    assert "--resume" in message
    assert not out.exists()
    assert not list(tmp_path.glob("*.partial/output*"))  # whose room is needed
    assert cli("embed", bert, texts_file, "-o", out, "--resume").status == 0
    if suffix == ".parquet":
        assert pyarrow.parquet.read_table(out).num_rows == 800


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize(
    ("name", "kept"),
    [
        ("manifest.json", "nothing is kept yet"),
        ("part-000000.npy", "nothing is kept yet"),
        ("part-000001.npy", "3 texts are kept"),
        ("part-000001.json", "3 texts are kept"),
        ("output.npy", "10 texts are kept"),
    ],
)
def test_a_full_disk(
    fails: Fails,
    cli: Cli,
    tmp_path: Path,
    bert: Path,
    texts_file: Path,
    monkeypatch: pytest.MonkeyPatch,
    code: int,
    name: str,
    kept: str,
) -> None:
    monkeypatch.setattr(work, "UNIT_TEXTS", 3)
    monkeypatch.setattr(work, "PART_SECONDS", 0.0)
    synced = os.fsync

    def full(number: int) -> None:
        path = Path(f"/proc/self/fd/{number}").readlink()
        if path.name.removesuffix(".tmp") == name:
            raise OSError(code, os.strerror(code))
        synced(number)

    if not Path("/proc/self/fd").is_dir():
        pytest.skip("no /proc to tell files by")
    out = tmp_path / "o.npy"
    with monkeypatch.context() as patch:
        patch.setattr(files.os, "fsync", full)
        message = fails("embed", bert, texts_file, "-o", out)
    assert f"{out}.partial/{name}" in message
    assert os.strerror(code) in message
    assert "make room" in message
    assert kept in message
    assert "--resume" in message
    assert not out.exists()
    assert not list(tmp_path.glob("*/*.tmp"))
    assert cli("embed", bert, texts_file, "-o", out, "--resume").status == 0
    assert np.load(out).shape == (10, 64)


def bar_of(said: str) -> list[str]:
    return [piece for line in said.split("\n") for piece in line.split("\r") if "|" in piece]


def test_one_bar_with_a_total(cli: Cli, tmp_path: Path, bert: Path) -> None:
    rows = "".join(json.dumps({"text": text}) + "\n" for text in TEXTS * 3)
    given = tmp_path / "in.jsonl"
    given.write_text(rows)
    said = cli("embed", bert, given, "-o", tmp_path / "o.npy", "--progress")
    bars = bar_of(said.err)
    size = given.stat().st_size
    assert {bar.split(":")[0] for bar in bars} == {"embed"}
    assert f"/{size / 1000:.2f}k" in bars[-1]
    assert "100%" in bars[-1]
    assert "30 texts" in bars[-1]
    assert "<00:00" in bars[-1]


def test_the_bar_of_parquet_counts_texts(cli: Cli, tmp_path: Path, bert: Path) -> None:
    given = tmp_path / "in.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"text": TEXTS}), given)
    said = cli("embed", bert, given, "-o", tmp_path / "o.npy", "--progress", "--shard", "1/3")
    bars = bar_of(said.err)
    assert {bar.split(":")[0] for bar in bars} == {"embed"}
    assert "10/10" in bars[-1]


def test_a_resumed_bar_begins_where_the_run_does(
    cli: Cli, tmp_path: Path, bert: Path, texts_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else its estimate would take what was resumed for work done in no time."""
    monkeypatch.setattr(work, "UNIT_TEXTS", 5)
    call, calls = work._Worker.__call__, list[int]()

    def once(self: Any, unit: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return call(self, unit)

    with monkeypatch.context() as patch:
        patch.setattr(work._Worker, "__call__", once)
        assert cli("embed", bert, texts_file, "-o", tmp_path / "o.npy").status == 130
    said = cli("embed", bert, texts_file, "-o", tmp_path / "o.npy", "--resume", "--progress")
    assert said.status == 0
    begun = len("".join(text + "\n" for text in TEXTS[:5]).encode())
    total = texts_file.stat().st_size
    assert f"{100 * begun / total:.0f}%" in bar_of(said.err)[0]


def test_no_bar_without_a_terminal(cli: Cli, tmp_path: Path, bert: Path, texts_file: Path) -> None:
    assert bar_of(cli("embed", bert, texts_file, "-o", tmp_path / "o.npy").err) == []


def test_streams_that_are_closed(bert: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`pyenc info MODEL >&- 2>&-`"""
    monkeypatch.setattr(sys, "stdout", None)
    monkeypatch.setattr(sys, "stderr", None)
    assert main.main(["info", str(bert)]) == 0
    assert main.main(["info", "/no/such/folder"]) == 2
