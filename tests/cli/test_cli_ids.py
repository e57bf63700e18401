"""Ids at more than one row are warned of, in bounded memory."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cli_support import Cli

import pyenc
from pyenc.cli import ids, work
from pyenc.cli.ids import SeenIds


@pytest.mark.parametrize("kind", [int, str])
def test_they_are_found_whatever_the_order(kind: Callable[[int], Any]) -> None:
    draw = random.Random(5)
    numbers = [draw.randrange(3000) for _ in range(4000)]
    seen, known, repeated = SeenIds(), set[int](), 0
    while numbers:
        size = draw.randrange(1, 60)
        block, numbers = numbers[:size], numbers[size:]
        first = None
        for place, number in enumerate(block):
            if number in known:
                repeated += 1
                first = place if first is None else first
            known.add(number)
        assert seen.add([kind(number) for number in block]) == first
        assert seen.repeated == repeated
    assert len(seen._runs) < 16
    assert sum(map(len, seen._runs)) == len(known)


def test_strings_and_numbers_alike() -> None:
    seen = SeenIds()
    assert seen.add([]) is None
    assert seen.add(["a", "b", "a"]) == 2
    assert seen.add(["é", ""]) is None
    assert seen.add([2**62, -1]) is None
    assert seen.add([-1]) == 0


def test_memory_ends_at_the_capacity(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ids, "CAPACITY", 10)
    seen = SeenIds()
    seen.add(list(range(8)))
    assert not seen.full
    assert seen.add(list(range(7, 12))) == 0
    assert seen.full
    assert seen.add([11, 3]) == 1
    assert sum(map(len, seen._runs)) == 8


@pytest.mark.parametrize("stop", [None, 1])
def test_the_warning(
    cli: Cli, tmp_path: Path, bert: Path, monkeypatch: pytest.MonkeyPatch, stop: int | None
) -> None:
    """Also when the first of two is in a part that was resumed."""
    monkeypatch.setattr(work, "UNIT_TEXTS", 2)
    monkeypatch.setattr(work, "PART_SECONDS", 0.0)
    given, out = tmp_path / "in.jsonl", tmp_path / "o.jsonl"
    keys = ["a", "b", "c", "a", "d", "b"]
    given.write_text("".join(json.dumps({"text": "one", "id": key}) + "\n" for key in keys))
    words = ["embed", bert, given, "--id-field", "id", "-o", out]
    if stop:
        encode, calls = pyenc.TextEncoder.encode, list[int]()

        def once(self: pyenc.TextEncoder, texts: list[str], **options: Any) -> Any:
            calls.extend([1] * bool(texts))
            if len(calls) > 1:
                raise KeyboardInterrupt
            return encode(self, texts, **options)

        with monkeypatch.context() as patch:
            patch.setattr(pyenc.TextEncoder, "encode", once)
            assert cli(*words).status == 130
    said = cli(*words, "--resume")
    assert said.status == 0
    (line,) = [line for line in said.err.splitlines() if "repeat" in line]
    assert line == (
        "pyenc: warning: id 'a' of row 3 stands at a row before it too; rows that repeat an id: 2"
    )
    assert [json.loads(line)["id"] for line in out.read_text().splitlines()] == keys
