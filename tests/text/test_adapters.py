"""Adapters of peft as checkpoints: whose recipe, whose words, what is saved."""

from __future__ import annotations

import fnmatch
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import pyenc
from pyenc.errors import CheckpointError, InputError, InputTypeError
from pyenc.loading import hub_fetch, load_checkpoint
from pyenc.loading.hub import SAFETENSORS, SMALL_FILES
from tests.conftest import GOLDEN
from tests.loading.lora_folders import BASE, QUERY, adapter, base_tensors, changes, merged
from tests.text.adapter_support import TEXTS, quietly

WORDS = ("tokenizer.json", "tokenizer_config.json", "vocab.txt", "special_tokens_map.json")
RECIPE = (
    "modules.json",
    "1_Pooling",
    "config_sentence_transformers.json",
    "sentence_bert_config.json",
)


@pytest.fixture
def merged_folder(tmp_path: Path) -> Path:
    """The base with the changes in its weights, by the formula."""
    folder = tmp_path / "merged"
    shutil.copytree(GOLDEN / BASE, folder)
    tensors = base_tensors()
    for module, change in ((QUERY, changes([QUERY])),):
        name = f"{module}.weight"
        tensors[name] = merged(tensors[name], change, module).float()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def same(encoder: pyenc.TextEncoder, other: pyenc.TextEncoder) -> None:
    np.testing.assert_allclose(encoder.encode(TEXTS), other.encode(TEXTS), atol=2e-6)
    assert encoder.max_length == other.max_length
    assert encoder.recipe == other.recipe


def carried(folder: Path, names: tuple[str, ...], source: Path = GOLDEN / BASE) -> Path:
    """The files of a base that an adapter's folder has too."""
    for name in names:
        if (source / name).is_dir():
            shutil.copytree(source / name, folder / name)
        elif (source / name).is_file():
            shutil.copy(source / name, folder / name)
    return folder


def test_put_on_a_base(tmp_path: Path, merged_folder: Path) -> None:
    """The base's recipe and words, whatever the adapter calls its base."""
    folder = adapter(tmp_path / "a", changes([QUERY]), "nobody/nothing")
    encoder = pyenc.load(GOLDEN / BASE, adapter=folder, device="cpu")
    same(encoder, pyenc.load(merged_folder, device="cpu"))
    assert encoder.checkpoint.adapter == str(folder)
    encoder.save(tmp_path / "saved")
    assert not (tmp_path / "saved" / "adapter_config.json").exists()
    same(pyenc.load(tmp_path / "saved", device="cpu"), encoder)


def test_a_folder_of_its_own(tmp_path: Path, merged_folder: Path) -> None:
    """As sentence-transformers saves a model with an adapter: everything but a base."""
    folder = carried(adapter(tmp_path / "a", changes([QUERY])), WORDS + RECIPE)
    encoder = pyenc.load(folder, device="cpu")
    same(encoder, pyenc.load(merged_folder, device="cpu"))
    assert encoder.name == str(folder)
    encoder.save(tmp_path / "saved")
    saved = {path.name for path in (tmp_path / "saved").iterdir()}
    assert {"config.json", "model.safetensors", "modules.json", "tokenizer.json"} <= saved
    assert "adapter_config.json" not in saved
    same(pyenc.load(tmp_path / "saved", device="cpu"), encoder)


def test_in_a_module_of_its_own(tmp_path: Path, merged_folder: Path) -> None:
    """The first module in a folder below, as older models have it."""
    folder = carried(tmp_path / "a", ())
    inside = carried(adapter(folder / "0_Transformer", changes([QUERY])), WORDS)
    carried(folder, ("1_Pooling",))
    kinds = [("Transformer", "0_Transformer"), ("Pooling", "1_Pooling")]
    modules = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (kind, path) in enumerate(kinds)
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    shutil.copy(GOLDEN / BASE / "sentence_bert_config.json", inside)
    encoder = pyenc.load(folder, device="cpu", normalize=True)
    right = pyenc.load(merged_folder, device="cpu", normalize=True)
    np.testing.assert_allclose(encoder.encode(TEXTS), right.encode(TEXTS), atol=2e-6)
    encoder.save(tmp_path / "saved")
    again = pyenc.load(tmp_path / "saved", device="cpu")
    assert (again.encode(TEXTS) == encoder.encode(TEXTS)).all()


def test_an_adapter_alone(tmp_path: Path, merged_folder: Path) -> None:
    """As peft saves it: its base's words, and a pooling that is assumed, as sentence-transformers
    does, whatever the base's files say."""
    folder = adapter(tmp_path / "a", changes([QUERY]))
    with pytest.warns(pyenc.AssumptionWarning, match="its files do not say how its vectors are"):
        encoder = pyenc.load(folder, device="cpu")
    right = quietly(merged_folder, pooling="mean", normalize=False)
    np.testing.assert_allclose(encoder.encode(TEXTS), right.encode(TEXTS), atol=2e-6)
    encoder = pyenc.load(folder, device="cpu", pooling="cls", normalize=True)
    right = pyenc.load(merged_folder, device="cpu", pooling="cls", normalize=True)
    np.testing.assert_allclose(encoder.encode(TEXTS), right.encode(TEXTS), atol=2e-6)


def test_its_own_words_come_first(tmp_path: Path) -> None:
    """All of its tokenizer, and nothing of the base's beside it."""
    folder = carried(adapter(tmp_path / "a", changes([QUERY])), WORDS)
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"model_max_length": 7}))
    encoder = quietly(folder)
    assert encoder.max_length == 7
    with pytest.warns(pyenc.TruncationWarning, match="exceed 7 tokens"):
        encoder.encode(TEXTS)
    assert quietly(adapter(tmp_path / "b", changes([QUERY]))).max_length != 7


def test_of_a_language_model(tmp_path: Path) -> None:
    """Whose base's `config.json` has the last token pooled."""
    name, module = "qwen3_embed_like_h4", "layers.0.self_attn.q_proj"
    tensors = changes([module], base=name)
    folder = adapter(tmp_path / "a", tensors, GOLDEN / name, target_modules=["q_proj"])
    encoder = quietly(folder)
    assert encoder.recipe.pooling == "lasttoken"
    right = quietly(GOLDEN / name, adapter=folder, normalize=False)
    assert (encoder.encode(TEXTS) == right.encode(TEXTS)).all()


def test_by_processes(tmp_path: Path) -> None:
    folder = carried(adapter(tmp_path / "a", changes([QUERY])), WORDS + RECIPE)
    encoder = pyenc.load(folder, device="cpu")
    with encoder.pool(["cpu"]) as pool:
        assert (pool.encode(TEXTS) == encoder.encode(TEXTS)).all()


def test_by_names_of_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The adapter's repository, its base's at the revision that it names; each is fetched once."""
    folder = carried(adapter(tmp_path / "a", changes([QUERY]), "some/base", revision="v2"), RECIPE)
    there = {("my/adapter", None): folder, ("some/base", "v2"): GOLDEN / BASE}
    asked = []

    def fake(name: str, *, revision: str | None, allow_patterns: list[str]) -> str:
        if "adapter_model.safetensors" in allow_patterns:  # and not for pickles beside
            asked.append((name, revision))
        return str(there.get((name, revision)) or there[name, None])

    monkeypatch.setattr(hub_fetch, "snapshot_download", fake)
    encoder = pyenc.load("my/adapter", device="cpu")
    assert asked == list(there)
    there["some/base", None] = there["some/base", "v2"]
    same(pyenc.load("some/base", adapter="my/adapter", device="cpu"), encoder)
    assert {"adapter_config.json"} <= set(SMALL_FILES)
    assert {"adapters/*/adapter_config.json", "adapters/*/adapter_model.safetensors"} <= set(
        SAFETENSORS
    )


def test_refused(tmp_path: Path) -> None:
    tensors = changes([QUERY])
    gone = adapter(tmp_path / "gone", tensors, tmp_path / "nowhere")
    message = (
        r"gone/adapter_config.json: base_model_name_or_path: .*nowhere: no such folder.*adapter="
    )
    with pytest.raises(CheckpointError, match=message):
        pyenc.load(gone)
    for said in (None, ""):
        none = adapter(tmp_path / "none", tensors, base_model_name_or_path=said)
        with pytest.raises(CheckpointError, match=r"base_model_name_or_path names nothing: pyenc"):
            pyenc.load(none)
    with pytest.raises(CheckpointError, match=r"base_model_name_or_path must be a string, got 3"):
        pyenc.load(adapter(tmp_path / "none", tensors, base_model_name_or_path=3))
    long = adapter(tmp_path / "long", tensors, "x" * 5000)
    with pytest.raises(
        CheckpointError, match=r"base_model_name_or_path: x+\.\.\.: File name too long"
    ):
        pyenc.load(long)
    first = adapter(tmp_path / "first", tensors)
    second = adapter(tmp_path / "second", tensors, first)
    with pytest.raises(CheckpointError, match=r"its base, .*first, is an adapter of peft, and ad"):
        pyenc.load(second)
    with pytest.raises(CheckpointError, match=r"first: an adapter of peft, and adapters of adapt"):
        pyenc.load(first, adapter=second)
    whole = tmp_path / "whole"
    shutil.copytree(GOLDEN / BASE, whole)
    adapter(whole, tensors)
    with pytest.raises(
        CheckpointError, match=r"there are whole weights beside it, and whether its"
    ):
        pyenc.load(whole)
    encoder = pyenc.load(whole, adapter=whole, device="cpu")
    assert (encoder.encode(TEXTS) == pyenc.load(GOLDEN / BASE, adapter=first).encode(TEXTS)).all()
    encoder.save(tmp_path / "saved")
    pyenc.load(tmp_path / "saved")
    with pytest.raises(
        InputTypeError, match=r"adapter must be a folder, a Hub name or None, got i"
    ):
        pyenc.load(GOLDEN / BASE, adapter=3)  # type: ignore[arg-type]
    for call in (pyenc.load, load_checkpoint):
        with pytest.raises(InputTypeError, match=r"adapter must be a folder, a Hub name or None"):
            call(GOLDEN / BASE, adapter=3)  # type: ignore[operator]
        with pytest.raises(InputError, match=r"adapter must be .*, got an empty string"):
            call(GOLDEN / BASE, adapter="")  # type: ignore[operator]
    with pytest.raises(InputError, match=r"long-minilm: adapter=.* is not served of what comes"):
        pyenc.load("long-minilm", adapter=first)
    with pytest.raises(
        InputError, match=r"task='x' asks for an adapter, and the weights have none"
    ):
        pyenc.load(first, task="x")


def test_a_repository_with_whole_weights_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same answer as for a folder, pickles too."""
    there = tmp_path / "there"
    shutil.copytree(GOLDEN / BASE, there)
    tensors = load_file(there / "model.safetensors")
    (there / "model.safetensors").unlink()
    torch.save(tensors, there / "pytorch_model.bin")
    adapter(there, changes([QUERY]))
    fetched = tmp_path / "fetched"

    def fake(name: str, *, revision: str | None, allow_patterns: list[str]) -> str:
        for path in there.rglob("*"):
            inside = path.relative_to(there).as_posix()
            if path.is_file() and any(fnmatch.fnmatch(inside, p) for p in allow_patterns):
                (fetched / inside).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(path, fetched / inside)
        return str(fetched)

    monkeypatch.setattr(hub_fetch, "snapshot_download", fake)
    for name in ("my/both", there):
        with pytest.raises(CheckpointError, match="there are whole weights beside it"):
            pyenc.load(name)
    other = adapter(tmp_path / "other", changes([QUERY], seed=3))
    first, second = (pyenc.load(n, adapter=other, device="cpu") for n in ("my/both", there))
    assert (first.encode(TEXTS) == second.encode(TEXTS)).all()


def test_a_limit_of_its_own_beside_its_bases_words(tmp_path: Path) -> None:
    folder = adapter(tmp_path / "a", changes([QUERY]))
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "BertTokenizer", "model_max_length": 9})
    )
    assert quietly(folder).max_length == 9


def test_not_saved_into_an_adapters_folder(tmp_path: Path) -> None:
    folder = adapter(tmp_path / "a", changes([QUERY]))
    before = sorted(folder.iterdir())
    with pytest.raises(
        CheckpointError, match=r"a/adapter_config.json: a folder of an adapter, bes"
    ):
        quietly(folder).save(folder)
    assert sorted(folder.iterdir()) == before


def test_errors_name_the_folder(tmp_path: Path) -> None:
    """And not the one where its files and its base's are put together for the moment."""
    folder = carried(adapter(tmp_path / "a", changes([QUERY])), WORDS + RECIPE)
    (folder / "tokenizer.json").write_text("{")
    with pytest.raises(CheckpointError) as caught:
        pyenc.load(folder)
    assert str(caught.value).startswith(str(folder / "tokenizer.json"))
    base = tmp_path / "base"
    shutil.copytree(GOLDEN / BASE, base)
    (base / "tokenizer.json").write_text("{")
    with pytest.raises(CheckpointError) as caught:
        quietly(adapter(tmp_path / "b", changes([QUERY]), base))
    assert str(caught.value).startswith(str(base / "tokenizer.json"))
