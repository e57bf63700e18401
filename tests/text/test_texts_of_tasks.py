"""Texts for a task of jina-embeddings-v3: its adapter, what is put before them, what is saved."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

import pyenc
from pyenc.errors import CheckpointError, InputError
from pyenc.loading import own_checkpoint
from pyenc.text.arguments import PromptWarning
from tests.conftest import GOLDEN, Golden, read_golden

NAME = "jinav3_lora_like_h2"
TASKS = ("retrieval.query", "retrieval.passage", "separation", "classification", "text-matching")


@pytest.fixture(scope="module")
def golden() -> Golden:
    return read_golden(NAME)


def right(golden: Golden, task: str | None) -> np.ndarray:
    expected = golden.expected(f"task.{task}.text" if task else "text", "pooled_norm")
    assert expected is not None
    return expected.numpy()


def off(got: np.ndarray, expected: np.ndarray) -> float:
    return float(np.abs(got - expected).max())


@pytest.mark.parametrize("task", TASKS)
def test_texts_of_a_task(golden: Golden, task: str, tmp_path: Path) -> None:
    encoder = pyenc.load(golden.folder, task=task, skip_eps=0)
    got = encoder.encode(golden.texts)
    assert off(got, right(golden, task)) <= 1e-5
    assert off(got, right(golden, None)) > 0.01
    assert (encoder.encode(golden.texts, prompt_name=task) == got).all()
    sides = {"retrieval.query": "query", "retrieval.passage": "document"}
    for side, method in (("query", encoder.encode_query), ("document", encoder.encode_document)):
        if sides.get(task, side) == side:
            assert (method(golden.texts) == got).all()
        else:
            with pytest.raises(InputError, match=f"is of the task '{task}', and not for a {side}"):
                method(golden.texts)
    another = TASKS[TASKS.index(task) - 1]
    with pytest.raises(InputError, match=f"prompt_name '{another}' is unknown"):
        encoder.encode(golden.texts, prompt_name=another)
    encoder.save(tmp_path)
    again = pyenc.load(tmp_path, skip_eps=0)
    assert again.recipe == encoder.recipe
    assert (again.encode(golden.texts) == got).all()


def test_texts_without_a_task(golden: Golden, tmp_path: Path) -> None:
    """Neither an adapter nor an instruction, as in the original code."""
    encoder = pyenc.load(golden.folder, skip_eps=0)
    got = encoder.encode(golden.texts)
    assert off(got, right(golden, None)) <= 1e-5
    assert tuple(encoder.recipe.prompts) == TASKS
    for side, method in (("query", encoder.encode_query), ("passage", encoder.encode_document)):
        with pytest.warns(PromptWarning, match=f"adapter too: task='retrieval.{side}'"):
            assert (method(golden.texts) == got).all()
    encoder.save(tmp_path)
    again = pyenc.load(tmp_path, task="separation", skip_eps=0)
    assert off(again.encode(golden.texts), right(golden, "separation")) <= 1e-5


def test_prompts_of_tasks_without_adapters(tmp_path: Path) -> None:
    """No adapter is told of that is not there."""
    shutil.copytree(GOLDEN / "jinav3_hf_like_h4", tmp_path, dirs_exist_ok=True)
    prompts = {"prompts": {"retrieval.query": "query: "}}
    (tmp_path / "config_sentence_transformers.json").write_text(json.dumps(prompts))
    with pytest.warns(PromptWarning, match="prompt_name='retrieval.query' asks for that$"):
        pyenc.load(tmp_path).encode_query("a text")


def test_read_by_sentence_transformers(golden: Golden, tmp_path: Path) -> None:
    """What is saved for a task needs no code of the repository."""
    sentence_transformers = pytest.importorskip("sentence_transformers", minversion="5")
    encoder = pyenc.load(golden.folder, task="retrieval.query", skip_eps=0)
    encoder.save(tmp_path)
    model = sentence_transformers.SentenceTransformer(str(tmp_path), device="cpu")
    assert off(model.encode(golden.texts), right(golden, "retrieval.query")) <= 1e-5
    assert off(model.encode_query(golden.texts), right(golden, "retrieval.query")) <= 1e-5


@pytest.mark.parametrize("inside", ["", "0_Transformer"])
def test_with_adapters_the_repositorys_class_is_asked_for(inside: str, tmp_path: Path) -> None:
    """By sentence-transformers alone, as of the published folder: of one of its own module it would
    make an XLM-RoBERTa of random tensors, without an error."""
    folder = copied(tmp_path / "published")
    modules = json.loads((folder / "modules.json").read_text())
    if inside:
        (folder / inside).mkdir()
        for path in folder.glob("*"):
            if path.is_file() and not path.name.startswith(("modules", "config_sentence")):
                path.rename(folder / inside / path.name)
        modules[0]["path"] = inside
        (folder / "modules.json").write_text(json.dumps(modules))
    texts = ["a text", "another"]
    encoder = pyenc.load(folder)
    encoder.save(tmp_path / "saved")
    assert json.loads((tmp_path / "saved/modules.json").read_text()) == modules
    assert (pyenc.load(tmp_path / "saved").encode(texts) == encoder.encode(texts)).all()
    pyenc.load(folder, normalize=False).save(tmp_path / "bare")
    assert json.loads((tmp_path / "bare/modules.json").read_text()) == modules[:2]
    pyenc.load(folder, task="separation").save(tmp_path / "task")
    first = json.loads((tmp_path / "task/modules.json").read_text())[0]
    right = {**modules[0], "type": "sentence_transformers.models.Transformer"}
    right.pop("kwargs")
    assert first == right


def test_with_adapters_sentence_transformers_refuses_it(golden: Golden, tmp_path: Path) -> None:
    sentence_transformers = pytest.importorskip("sentence_transformers", minversion="5")
    pyenc.load(golden.folder).save(tmp_path)
    with pytest.raises((ValueError, ImportError), match="custom_st"):
        sentence_transformers.SentenceTransformer(str(tmp_path), device="cpu")


@pytest.mark.parametrize("task", ["separation", None])
def test_saved_without_adapters(golden: Golden, task: str | None, tmp_path: Path) -> None:
    """In eight bits, and in pyenc's own format."""
    encoder = pyenc.load(golden.folder, task=task, quantize="int8")
    encoder.save(tmp_path / "int8")
    again = pyenc.load(tmp_path / "int8")
    assert (again.encode(golden.texts) == encoder.encode(golden.texts)).all()
    encoder = pyenc.load(golden.folder, task=task, skip_eps=0)
    encoder.checkpoint = own_checkpoint(encoder.model)
    encoder.save(tmp_path / "own")
    again = pyenc.load(tmp_path / "own", skip_eps=0)
    assert off(again.encode(golden.texts), right(golden, task)) <= 1e-5


def copied(to: Path, **files: object) -> Path:
    shutil.copytree(GOLDEN / NAME, to, dirs_exist_ok=True)
    for name, content in files.items():
        (to / f"{name}.json").write_text(json.dumps(content))
    return to


def test_without_files_of_sentence_transformers(golden: Golden, tmp_path: Path) -> None:
    """config.json has the instructions too."""
    folder = copied(tmp_path)
    for name in ("modules.json", "config_sentence_transformers.json"):
        (folder / name).unlink()
    encoder = pyenc.load(folder, task="retrieval.query", normalize=True, skip_eps=0)
    assert off(encoder.encode(golden.texts), right(golden, "retrieval.query")) <= 1e-5


def test_two_instructions_of_one_task(tmp_path: Path) -> None:
    prompts = {"prompts": {"retrieval.query": "query: "}}
    folder = copied(tmp_path, config_sentence_transformers=prompts)
    with pytest.raises(CheckpointError, match=r"the prompt 'retrieval.query' is 'query: ' in"):
        pyenc.load(folder, task="retrieval.query")
    assert pyenc.load(folder, task="separation").recipe.default_prompt_name == "separation"


def test_a_module_of_ones_own(tmp_path: Path) -> None:
    """The class is known by its checkpoint: of another it may compute what it likes."""
    folder = copied(tmp_path)
    shutil.copy(GOLDEN / "jinav3_hf_like_h4" / "config.json", folder)
    with pytest.raises(CheckpointError, match=r"'custom_st.Transformer' is not served"):
        pyenc.load(folder)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "config.json: not readable JSON"),
        ("[]", "config.json: expected a JSON object, got list"),
        (None, "config.json: missing"),
    ],
)
def test_a_damaged_config(content: str | None, message: str, tmp_path: Path) -> None:
    """Which the class of the first module is known by: it is named, and not modules.json."""
    path = copied(tmp_path) / "config.json"
    path.unlink()
    if content is not None:
        path.write_text(content)
    with pytest.raises(CheckpointError, match=message):
        pyenc.load(tmp_path)


def test_where_it_is_said() -> None:
    with pytest.raises(TypeError, match=r"task= of pyenc.load where a checkpoint has adapters"):
        pyenc.load(GOLDEN / NAME).encode("ok", task="separation")  # type: ignore[call-arg]
    with pytest.raises(InputError, match="long-minilm: task='x' asks for an adapter"):
        pyenc.load("long-minilm", task="x")
