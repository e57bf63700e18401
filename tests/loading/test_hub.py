"""Names of the Hub: from its cache when offline, asking only for the files that are needed."""

from __future__ import annotations

import fnmatch
import json
import shutil
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest

import pyenc
from pyenc.errors import CheckpointError
from pyenc.loading import hub, hub_fetch, resolve
from tests.conftest import GOLDEN

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A Hub cache of our own, and the switch that keeps the library off the network."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    return tmp_path


def cached(cache: Path, name: str, golden: str) -> None:
    """Lay a golden checkpoint into the cache as a download would have."""
    repository = cache / f"models--{name.replace('/', '--')}"
    shutil.copytree(GOLDEN / golden, repository / "snapshots" / COMMIT)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)


@pytest.mark.parametrize("golden", ["jina_geglu_h4", "mosaic_base_h12"])
def test_offline_from_the_cache(cache: Path, golden: str) -> None:
    cached(cache, "someone/model", golden)
    encoder = pyenc.load("someone/model")
    expected = pyenc.load(GOLDEN / golden).encode("The quick brown fox")
    assert (encoder.encode("The quick brown fox") == expected).all()
    assert encoder.name == "someone/model"
    assert resolve("someone/model", COMMIT) == resolve("someone/model")


@pytest.mark.usefixtures("cache")
def test_not_in_the_cache() -> None:
    with pytest.raises(CheckpointError, match=r"someone/absent: no such folder here, not in the H"):
        pyenc.load("someone/absent")


def test_revision_that_is_not_cached(cache: Path) -> None:
    cached(cache, "someone/model", "jina_geglu_h4")
    with pytest.raises(CheckpointError, match="someone/model"):
        resolve("someone/model", "v2")


def test_only_what_is_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One set of weights, safetensors first; no ONNX, no other framework, no code."""
    repository = [
        "config.json", "tokenizer.json", "vocab.txt", "modules.json", "1_Pooling/config.json",
        "sentence_bert_config.json", "pytorch_model.bin", "model.safetensors", "model.onnx",
        "onnx/model.onnx", "tf_model.h5", "flax_model.msgpack", "openvino/openvino_model.bin",
        "modeling_bert.py", "README.md", "2_Dense/model.safetensors",
    ]  # fmt: skip
    asked: list[str] = []

    def fake(name: str, *, revision: str | None, allow_patterns: list[str]) -> str:
        for file in repository:
            if any(fnmatch.fnmatch(file, pattern) for pattern in allow_patterns):
                asked.append(file)
                (tmp_path / file).parent.mkdir(exist_ok=True)
                (tmp_path / file).touch()
        return str(tmp_path)

    monkeypatch.setattr(hub_fetch, "snapshot_download", fake)
    resolve("someone/model")
    assert sorted(asked) == [
        "1_Pooling/config.json", "2_Dense/model.safetensors", "config.json", "model.safetensors",
        "modules.json", "sentence_bert_config.json", "tokenizer.json", "vocab.txt",
    ]  # fmt: skip
    shutil.rmtree(tmp_path)
    tmp_path.mkdir()
    repository.remove("model.safetensors")
    asked.clear()
    resolve("someone/model")
    assert "pytorch_model.bin" in asked


def repository_of(
    files: dict[str, str], root: Path, monkeypatch: pytest.MonkeyPatch
) -> list[list[str]]:
    """A Hub with one repository, path -> content; what each call fetched of it."""
    calls: list[list[str]] = []

    def fake(name: str, *, revision: str | None, allow_patterns: list[str]) -> str:
        taken = [f for f in files if any(fnmatch.fnmatch(f, p) for p in allow_patterns)]
        calls.append(sorted(taken))
        for file in taken:
            (root / file).parent.mkdir(parents=True, exist_ok=True)
            (root / file).write_text(files[file])
        return str(root)

    monkeypatch.setattr(hub_fetch, "snapshot_download", fake)
    return calls


def modules(*paths: Any) -> str:
    return json.dumps([{"idx": i, "path": path, "type": "x"} for i, path in enumerate(paths)])


def test_folders_of_modules_by_any_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`modules.json` names them; of each the files that are read, and no other."""
    files = dict.fromkeys(
        ["encoder/config.json", "encoder/model.safetensors", "encoder/onnx/model.onnx",
         "encoder/tokenizer.json", "encoder/modeling.py", "parts/pooling/config.json",
         "10_Dense/config.json", "10_Dense/pytorch_model.bin", "1_Norm/config.json",
         "other/config.json", "pytorch_model.bin"], "",
    )  # fmt: skip
    files["modules.json"] = modules("encoder", "parts/pooling", "10_Dense", "1_Norm")
    calls = repository_of(files, tmp_path, monkeypatch)
    resolve("someone/model")
    assert calls == [
        ["1_Norm/config.json", "modules.json"],
        ["10_Dense/config.json", "10_Dense/pytorch_model.bin", "encoder/config.json",
         "encoder/model.safetensors", "encoder/tokenizer.json", "parts/pooling/config.json"],
    ]  # fmt: skip
    calls.clear()
    resolve("someone/model", weights=False)
    assert calls[1] == [
        "10_Dense/config.json", "1_Norm/config.json", "encoder/config.json",
        "encoder/tokenizer.json", "parts/pooling/config.json",
    ]  # fmt: skip


def test_an_encoder_in_the_outer_folder_has_its_pickle_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = dict.fromkeys(["config.json", "pytorch_model.bin", "pooling/config.json"], "")
    files["modules.json"] = modules("", "pooling", None)
    calls = repository_of(files, tmp_path, monkeypatch)
    resolve("someone/model")
    assert calls[1:] == [["pooling/config.json"], ["pytorch_model.bin"]]


@pytest.mark.parametrize(
    "content",
    [
        modules("../up", "/etc", "a/../..", "*", "a/[b]", "a//b", ".", "a/."),
        "{",
        "[1]",
        '[{"path": 1}]',
    ],
)
def test_modules_that_lead_elsewhere_are_not_fetched(
    content: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = dict.fromkeys(["config.json", "model.safetensors", "a/config.json"], "")
    calls = repository_of(files | {"modules.json": content}, tmp_path, monkeypatch)
    resolve("someone/model")
    assert len(calls) == 1


@pytest.mark.parametrize("name", ["./nowhere", "a/b/c", "no such folder", "owner/na me"])
def test_neither_folder_nor_name(name: str) -> None:
    with pytest.raises(CheckpointError, match="no such folder"):
        resolve(name)


def test_a_name_that_no_file_can_have() -> None:
    """An error shows where such a one begins: it may be a text that was given for a name."""
    with pytest.raises(CheckpointError) as caught:
        resolve("of a fox " * 1000)
    assert str(caught.value) == ("of a fox " * 23)[:200] + "...: File name too long"
    with pytest.raises(CheckpointError, match=r"^(of a fox ){22}of: no such folder, and not a Hub"):
        resolve("of a fox " * 22 + "of")


def test_a_file_and_a_revision_of_a_folder(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match="a file; expected the folder"):
        resolve(tmp_path / "config.json")
    with pytest.raises(CheckpointError, match="revision='main' goes with a Hub name only"):
        resolve(tmp_path, "main")


def test_subfolder_and_options(tmp_path: Path) -> None:
    """A checkpoint inside of a repository, in a cache of the caller's own."""
    inside = tmp_path / "models--someone--model" / "snapshots" / COMMIT / "encoder"
    shutil.copytree(GOLDEN / "mosaic_base_h12", inside)
    (inside.parents[2] / "refs").mkdir()
    (inside.parents[2] / "refs" / "main").write_text(COMMIT)
    options = {"cache_dir": tmp_path, "local_files_only": True, "token": "hf_x"}
    found = resolve("someone/model", subfolder="encoder", options=options)
    assert found == inside
    assert resolve(GOLDEN, subfolder="mosaic_base_h12") == GOLDEN / "mosaic_base_h12"


def test_only_the_subfolder_is_asked_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked = []

    def download(name: str, **given: object) -> str:
        asked.append(given)
        return str(tmp_path / COMMIT)

    monkeypatch.setattr(hub_fetch, "snapshot_download", download)
    resolve("someone/model", "v2", subfolder="encoder", options={"token": "hf_x"})
    first, second = asked
    assert all(str(p).startswith("encoder/") for p in first["allow_patterns"])
    assert second["allow_patterns"] == [f"encoder/{pattern}" for pattern in hub.PICKLES]
    assert (first["revision"], second["revision"]) == ("v2", COMMIT)
    assert first["token"] == second["token"] == "hf_x"
