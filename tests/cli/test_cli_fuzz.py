"""Valid files with bytes changed: read, or refused in one line; never somebody else's traceback.

Seeded, so that a failure comes again; FUZZ=5000 in the environment is a longer run.
"""

from __future__ import annotations

import io
import json
import os
import random
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from cli_support import GOLDEN, TEXTS, Cli

from pyenc import PyencError
from pyenc.cli import work
from pyenc.cli.readers import open_source
from pyenc.cli.verify import _stored

CASES = int(os.environ.get("FUZZ", "0"))

PIECES = [
    b"\xff\xff\xff\xff", b"\0\0\0\0", b"\x80\0\0\0", b"\r\n\x0b\x85", b'"":{', b"1e999", b"null",
    b"[[[[", b"-999", b"NaN,", b"\\ud800", b"\xe2\x80\xa8", b"True", b"{}",
]  # fmt: skip
VALUES: list[Any] = [
    None, [], {}, -1, 0, 1.5, "x", "", True, 10**30, [None], {"a": 1}, 1e308, float("nan"), 2**31
]  # fmt: skip


def seeds(count: int) -> Iterator[random.Random]:
    for seed in range(CASES or count):
        yield random.Random(seed)


def mutated(draw: random.Random, content: bytes) -> bytes:
    data = bytearray(content)
    for _ in range(draw.choice([1, 1, 2, 5, 20])):
        at = draw.randrange(len(data) + 1)
        kind = draw.randrange(5)
        if kind == 0:
            data[at : at + 1] = bytes([draw.randrange(256)])
        elif kind == 1:
            del data[at : at + draw.randrange(1, 9)]
        elif kind == 2:
            data[at:at] = draw.randbytes(draw.randrange(1, 9))
        elif kind == 3 and draw.random() < 0.3:
            del data[at:]
        else:
            piece = draw.choice(PIECES)
            data[at : at + len(piece)] = piece
    return bytes(data)


def other_json(draw: random.Random, content: bytes) -> bytes:
    """One value of a JSON file changed for another, or left out."""
    whole = json.loads(content)
    place = whole
    for _ in range(draw.randrange(3)):
        inside = place.values() if isinstance(place, dict) else place
        deeper = [value for value in inside if isinstance(value, (dict, list)) and value]
        place = draw.choice(deeper) if deeper else place
    if place:
        key = draw.choice(list(place) if isinstance(place, dict) else range(len(place)))
        if draw.random() < 0.2:
            del place[key]
        else:
            place[key] = draw.choice(VALUES)
    return json.dumps(whole).encode()


def holds(read: Callable[[], object]) -> int:
    """1 if it can be read, 0 if it is refused in one line."""
    story = None
    try:
        read()
    except PyencError as error:
        story = str(error)
    assert story is None or (0 < len(story) < 1000 and "\n" not in story), story
    return int(story is None)


def test_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"text": text, "id": i} for i, text in enumerate(TEXTS)]
    good = "".join(json.dumps(row, ensure_ascii=row["id"] % 2 == 0) + "\n" for row in rows).encode()
    path, read = tmp_path / "t", 0
    for draw in seeds(400):
        content = mutated(draw, good)
        path.write_bytes(content)
        for kind, field, id_field in (("jsonl", "text", "id"), ("txt", None, None)):
            source = open_source, (str(path), field, id_field, kind)
            read += holds(lambda s=source: list(s[0](*s[1]).entries()))  # type: ignore[misc]
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))
        read += holds(lambda: list(open_source("-", None, None).entries()))
    assert read > 400


def bases() -> Iterator[bytes]:
    texts = [*TEXTS, None]
    options: list[tuple[pa.Array, dict[str, Any]]] = [
        (pa.array(texts), {}),
        (pa.array(texts, pa.string_view()), {"compression": "zstd"}),
        (pa.array(texts).dictionary_encode(), {"row_group_size": 3}),
        (
            pa.array(texts, pa.large_string()),
            {"use_dictionary": False, "data_page_version": "2.0", "compression": "none"},
        ),
    ]
    for array, more in options:
        file = io.BytesIO()
        pq.write_table(pa.table({"text": array, "id": range(len(texts))}), file, **more)
        yield file.getvalue()
    file = io.BytesIO()
    pl.DataFrame({"text": texts, "id": range(len(texts))}).write_parquet(file)
    yield file.getvalue()


def test_parquet(tmp_path: Path) -> None:
    path, good, read = tmp_path / "t.parquet", list(bases()), 0
    for draw in seeds(300):
        content = draw.choice(good)
        if draw.random() < 0.5:  # the footer, where the structure is
            at = len(content) - draw.randrange(8, 900)
            content = content[:at] + mutated(draw, content[at:-8]) + content[-8:]
        else:
            content = mutated(draw, content)
        path.write_bytes(content)

        def everything(draw: random.Random = draw) -> None:
            source = open_source(str(path), None, draw.choice([None, "id"]))
            source.meter()
            list(source.entries())

        read += holds(everything)
    assert read > 5


def test_stored_vectors(tmp_path: Path) -> None:
    vectors = np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32)
    np.save(tmp_path / "good.npy", vectors)
    npy = (tmp_path / "good.npy").read_bytes()
    lines = [json.dumps({"index": i, "embedding": v.tolist()}) for i, v in enumerate(vectors)]
    read = 0
    for draw in seeds(300):
        (tmp_path / "t.npy").write_bytes(mutated(draw, npy[:128]) + npy[128:])
        (tmp_path / "t.jsonl").write_bytes(mutated(draw, "\n".join(lines).encode()))
        for name in ("t.npy", "t.jsonl"):
            read += holds(lambda name=name: _stored(tmp_path / name, 6))  # type: ignore[misc]
    assert read > 5


def test_the_state_of_a_run(
    cli: Cli, tmp_path: Path, bert: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(work, "UNIT_TEXTS", 3)
    monkeypatch.setattr(work, "PART_SECONDS", 0.0)
    given, out = tmp_path / "in.jsonl", tmp_path / "o.parquet"
    rows = [*({"text": text, "id": i} for i, text in enumerate(TEXTS)), {"text": None, "id": 99}]
    given.write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ["embed", bert, given, "--id-field", "id", "--skip-bad", "-o", out]

    def stop(*args: object, **options: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("pyenc.cli.embed.write", stop)
        assert cli(*words).status == 130
    folder, keep = tmp_path / "o.parquet.partial", tmp_path / "keep"
    shutil.copytree(folder, keep)
    statuses = []
    for draw in seeds(40):
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(keep, folder)
        out.unlink(missing_ok=True)
        out.with_name("o.parquet.skipped.jsonl").unlink(missing_ok=True)
        file = draw.choice(sorted(folder.iterdir()))
        content = file.read_bytes()
        if file.suffix == ".json" and draw.random() < 0.7:
            file.write_bytes(other_json(draw, content))
        else:
            file.write_bytes(mutated(draw, content[:200]) + content[200:])
        said = cli(*words, "--resume")
        statuses.append(said.status)
        assert said.status in (0, 2)
        assert said.status == 0 or said.err.count("\n") == 1, said.err
        assert out.exists() == (said.status == 0)
    assert 2 in statuses


@pytest.mark.parametrize("name", ["bert_mean_h4", "jina_mlm_prefix_h4"])
@pytest.mark.filterwarnings("ignore")
def test_checkpoints(cli: Cli, tmp_path: Path, name: str) -> None:
    source, folder = GOLDEN / name, tmp_path / "model"
    texts = tmp_path / "t.txt"
    texts.write_text("hello world\n\n")
    files = [path.relative_to(source) for path in sorted(source.rglob("*")) if path.is_file()]
    statuses = []
    for draw in seeds(25):
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(source, folder)
        file = folder / draw.choice(files)
        content = file.read_bytes()
        if file.suffix == ".json" and draw.random() < 0.6:
            file.write_bytes(other_json(draw, content))
        else:
            file.write_bytes(mutated(draw, content[:2000]) + content[2000:])
        words = draw.choice([["info"], ["info", "--json"], ["verify", "--texts", texts]])
        said = cli(words[0], folder, *words[1:])
        statuses.append(said.status)
        assert said.status in (0, 1, 2), said
        if said.status == 2:
            assert said.err.startswith("pyenc: error: ")
            assert said.err.count("\n") == 1, said.err
    assert {0, 2} <= set(statuses)
