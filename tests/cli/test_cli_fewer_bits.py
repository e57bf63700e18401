"""What `pyenc info` says of fewer bits is what the shipped table has, and no more."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from cli_support import Cli

from pyenc.cli import precisions
from pyenc.models.families import FAMILIES
from pyenc.ops.linear import processor

TABLE = {
    "speed": {"avx2": {"source": "a machine", "bfloat16": {"times": 0.5}}},
    "error": {
        "BERT": {
            "source": "a checkpoint",
            "int8": {"cosine_mean": 0.99754, "cosine_worst": 0.9876, "top1": 0.9},
        }
    },
}


@pytest.fixture
def table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "precisions.json"
    file.write_text(json.dumps(TABLE), "utf-8")
    monkeypatch.setattr(precisions, "FILE", file)


@pytest.mark.usefixtures("table")
def test_by_processor_and_family() -> None:
    here, other = (processor.Processor(isa=isa) for isa in ("avx2", "avx512_core"))
    found = precisions.known("BERT", here)
    assert found["bfloat16"] == {"speed": {"source": "a machine", "times": 0.5}, "error": None}
    assert found["int8"]["speed"] is None
    assert found["int8"]["error"]["source"] == "a checkpoint"
    assert precisions.known("MPNet", here)["int8"] == {"speed": None, "error": None}
    # What was measured on a weaker kind says nothing of a stronger one.
    assert precisions.known("BERT", other)["bfloat16"]["speed"] is None


@pytest.mark.usefixtures("table")
def test_in_words(cli: Cli, bert: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processor, "here", lambda: processor.Processor(isa="avx2"))
    said = " ".join(cli("info", bert, "--device", "cpu").out.split())
    assert (
        "bfloat16 --dtype bfloat16: x0.50 float32's speed (a machine) error not measured for BERT "
        "int8 --quantize int8: speed not measured on such a processor cosine to float32's vectors "
        "0.99754, worst 0.9876, the same nearest text for 90.0% (a checkpoint)"
    ) in said


def test_the_shipped_table_is_whole() -> None:
    table = json.loads(precisions.FILE.read_text("utf-8"))
    assert table.keys() == {"speed", "error"}
    assert table["error"].keys() <= {family.name for family in FAMILIES}
    for entry in table["speed"].values():
        assert entry.keys() == {"source", *precisions.PRECISIONS}
        assert all(0.1 < entry[name]["times"] < 10 for name in precisions.PRECISIONS)
    for entry in table["error"].values():
        assert entry.keys() == {"source", *precisions.PRECISIONS}
        for name in precisions.PRECISIONS:
            error = entry[name]
            assert 0.9 < error["cosine_worst"] <= error["cosine_mean"] <= 1
            assert 0.5 < error["top1"] <= 1
