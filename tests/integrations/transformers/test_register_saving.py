"""A registered model, saved, sent to another process, trained: and what then reads it."""

from __future__ import annotations

import copy
import json
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import pyenc
from pyenc.errors import CheckpointError, InputError
from tests.conftest import GOLDEN, read_golden

# By a module of it: a folder of tests has its name.
pytest.importorskip("transformers.modeling_utils")

from transformers import AutoModel, AutoModelForMaskedLM

from pyenc.integrations.transformers.state import is_registered
from tests.integrations.transformers.register_support import SERVED, fresh, hidden
from tests.integrations.transformers.register_support import registered as registered

pytestmark = pytest.mark.usefixtures("registered")

JINA = GOLDEN / "jina_geglu_h4"


@pytest.mark.parametrize("name", SERVED)
def test_saved_and_loaded(name: str, tmp_path: Path) -> None:
    """The same states by AutoModel and by pyenc, and the published model_type from pyenc.save."""
    golden = read_golden(name)
    inputs = golden.inputs("ragged")
    model = AutoModel.from_pretrained(golden.folder)
    model.save_pretrained(tmp_path / "saved")
    said = json.loads((tmp_path / "saved" / "config.json").read_text("utf-8"))
    published = json.loads((golden.folder / "config.json").read_text("utf-8"))
    assert said["model_type"] == "pyenc"
    assert said["published"]["model_type"] == published["model_type"]
    again = AutoModel.from_pretrained(tmp_path / "saved")
    assert again.dtype == model.dtype
    assert torch.equal(hidden(again, inputs), hidden(model, inputs))
    ours = pyenc.load(tmp_path / "saved", pooling="mean", normalize=False, dtype="auto")
    with torch.no_grad():
        assert torch.equal(ours.model(*inputs), hidden(model, inputs))
    ours.save(tmp_path / "ours")
    back = json.loads((tmp_path / "ours" / "config.json").read_text("utf-8"))
    assert back["model_type"] == published["model_type"]
    first, second = (load_file(tmp_path / f / "model.safetensors") for f in ("saved", "ours"))
    assert first.keys() == second.keys()


@pytest.mark.slow
def test_transformers_alone_refuses_it(tmp_path: Path) -> None:
    AutoModel.from_pretrained(JINA).save_pretrained(tmp_path)
    ran = fresh(
        "import sys\nfrom transformers import AutoModel\nAutoModel.from_pretrained(sys.argv[1])",
        tmp_path,
    )
    assert ran.returncode
    assert "model type `pyenc`" in ran.stderr


def test_sentence_transformer_saved(tmp_path: Path) -> None:
    SentenceTransformer = pytest.importorskip("sentence_transformers").SentenceTransformer
    texts = [text[:40] for text in read_golden("jina_geglu_h4").texts]
    model = SentenceTransformer(str(JINA), device="cpu")
    vectors = model.encode(texts)
    model.save(str(tmp_path))
    assert (SentenceTransformer(str(tmp_path), device="cpu").encode(texts) == vectors).all()
    assert abs(pyenc.load(tmp_path).encode(texts) - vectors).max() <= 1e-5


def test_what_was_trained_is_written(tmp_path: Path) -> None:
    model = AutoModelForMaskedLM.from_pretrained(GOLDEN / "mosaic_mlm_h4")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += torch.randn_like(parameter) * 0.1
    model.save_pretrained(tmp_path)
    again = AutoModelForMaskedLM.from_pretrained(tmp_path)
    for key, value in model.state_dict().items():
        assert torch.equal(again.state_dict()[key], value), key


def test_state_dict(tmp_path: Path) -> None:
    """Given to save_pretrained, and read back under the names it is written with."""
    model = AutoModel.from_pretrained(JINA)
    state = {key: torch.randn_like(value) for key, value in model.state_dict().items()}
    model.save_pretrained(tmp_path, state_dict=state)
    assert not torch.equal(model.state_dict()["encoder.pooler.bias"], state["encoder.pooler.bias"])
    for strict in (True, False):  # a Trainer asks for the second
        again = AutoModel.from_pretrained(JINA)
        again.load_state_dict(load_file(tmp_path / "model.safetensors"), strict)
        assert all(torch.equal(again.state_dict()[key], value) for key, value in state.items())
    again.load_state_dict(model.state_dict())
    assert all(torch.equal(again.state_dict()[k], v) for k, v in model.state_dict().items())
    stored = load_file(tmp_path / "model.safetensors")
    name = "encoder.layer.0.attention.self.key.weight"
    stored.pop(name)
    with pytest.raises(InputError, match=name):
        again.load_state_dict(stored)
    with pytest.raises(InputError, match=r"pooler\.bias"):
        model.save_pretrained(
            tmp_path, state_dict={k: v for k, v in state.items() if "pooler.bias" not in k}
        )


def test_refused_when_saving(tmp_path: Path) -> None:
    model = AutoModel.from_pretrained(JINA)
    with pytest.raises(InputError, match="push_to_hub"):
        model.save_pretrained(tmp_path / "m", push_to_hub=True)
    with pytest.raises(InputError, match="variant"):
        model.save_pretrained(tmp_path / "m", variant="fp16")
    model.save_pretrained(tmp_path / "m", is_main_process=False)
    model.encoder.extra = torch.nn.Parameter(torch.zeros(2))
    with pytest.raises(CheckpointError, match="extra"):
        model.save_pretrained(tmp_path / "m")
    assert not (tmp_path / "m").exists()


@pytest.mark.parametrize("inner", [None, 3, {"model_type": "pyenc"}])
def test_own_type_without_a_published_config(inner: object, tmp_path: Path) -> None:
    AutoModel.from_pretrained(JINA).save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | {"published": inner}))
    for load in (AutoModel.from_pretrained, pyenc.load):
        with pytest.raises(CheckpointError, match="published"):
            load(tmp_path)


UNPICKLE = """
import pickle, sys, torch
model, ids = pickle.load(open(sys.argv[1], 'rb'))
from transformers import AutoModel
from pyenc.integrations.transformers.state import is_registered
print(is_registered(), type(AutoModel.from_pretrained(sys.argv[2])).__name__)
torch.save(model(ids)[0], sys.argv[3])
"""


@pytest.mark.slow
def test_unpickled_in_another_process(tmp_path: Path) -> None:
    model = AutoModel.from_pretrained(JINA)
    ids = torch.tensor([[2, 9, 4, 7]])
    (tmp_path / "m.pkl").write_bytes(pickle.dumps((model, ids)))
    ran = fresh(UNPICKLE, tmp_path / "m.pkl", JINA, tmp_path / "out.pt")
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.split() == ["True", "PyencModel"]
    assert torch.equal(torch.load(tmp_path / "out.pt"), model(ids)[0])


def test_a_copy_does_not_register_again() -> None:

    model = AutoModel.from_pretrained(JINA)
    pyenc.unregister()
    again = copy.deepcopy(model)
    assert not is_registered()
    ids = torch.tensor([[2, 9, 4, 7]])
    assert torch.equal(again(ids)[0], model(ids)[0])  # loaded models go on
    assert again.encoder is again._checkpoint.encoder


@pytest.mark.slow
def test_multi_process_pool() -> None:
    SentenceTransformer = pytest.importorskip("sentence_transformers").SentenceTransformer
    texts = read_golden("jina_geglu_h4").texts
    model = SentenceTransformer(str(JINA), device="cpu")
    pool = model.start_multi_process_pool(["cpu", "cpu"])
    try:
        got = model.encode(texts, pool=pool, chunk_size=2)
    finally:
        model.stop_multi_process_pool(pool)
    assert abs(got - model.encode(texts)).max() <= 1e-6
