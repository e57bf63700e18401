"""A checkpoint written back: the same vectors, settings and files."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path

import pytest
import torch

import pyenc
from tests.conftest import GOLDEN, Golden
from tests.text.texts import TEXTS

# One golden checkpoint has no sentence-transformers files; test_assumed.py has what is said of it.
pytestmark = pytest.mark.filterwarnings("ignore::pyenc.AssumptionWarning")


def test_without_a_tokenizer(tmp_path: Path) -> None:
    """MosaicBERT's own repositories carry none: token ids work, texts say what is missing."""
    source, folder = GOLDEN / "mosaic_mlm_h4", tmp_path / "bare"
    folder.mkdir()
    for file in ("config.json", "pytorch_model.bin"):
        shutil.copy(source / file, folder)
    bare = pyenc.load(folder)
    assert bare.model(torch.tensor([[2, 5, 3]])).shape == (1, 3, 64)
    with pytest.raises(pyenc.CheckpointError, match=r"no tokenizer files.* tokenizer=\.\.\."):
        bare.encode("the sky")
    (tmp_path / "empty").mkdir()
    with pytest.raises(pyenc.CheckpointError, match=r"empty: no tokenizer files; looked for tok"):
        pyenc.load(folder, tokenizer=tmp_path / "empty")
    given = pyenc.load(folder, tokenizer=source)
    assert (given.encode(TEXTS) == pyenc.load(source).encode(TEXTS)).all()
    given.save(tmp_path / "saved")
    again = pyenc.load(tmp_path / "saved")
    assert (again.encode(TEXTS) == given.encode(TEXTS)).all()


def test_own_settings_over_a_borrowed_tokenizer(tmp_path: Path) -> None:
    """`tokenizer_args` hold from the first, not only once saved."""
    folder = tmp_path / "model"
    shutil.copytree(GOLDEN / "bert_mean_h4", folder)
    own = {"max_seq_length": 64, "tokenizer_args": {"do_lower_case": False}}
    (folder / "sentence_bert_config.json").write_text(json.dumps(own))
    encoder = pyenc.load(folder, tokenizer=GOLDEN / "bert_mean_h4")
    encoder.save(tmp_path / "saved")
    again = pyenc.load(tmp_path / "saved")
    assert (again.encode("The SKY") == encoder.encode("The SKY")).all()
    assert (encoder.encode("The SKY") != encoder.encode("the sky")).any()


def test_everything_beside_is_saved(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(GOLDEN / "bert_mean_h4", folder)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    changed = config | {"truncation_side": "left", "extra_special_tokens": ["fox"]}
    (folder / "tokenizer_config.json").write_text(json.dumps(changed))
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates/tool.jinja").write_text("{{ tools }}")
    encoder = pyenc.load(folder)
    encoder.save(tmp_path / "saved")
    for name in ("chat_template.jinja", "additional_chat_templates/tool.jinja"):
        assert (tmp_path / "saved" / name).read_bytes() == (folder / name).read_bytes()
    again = pyenc.load(tmp_path / "saved")
    assert again.tokenizer is not None
    assert again.tokenizer.truncation_side == "left"
    split = {"split_special_tokens": True}
    (folder / "tokenizer_config.json").write_text(json.dumps(config | split))
    encoder = pyenc.load(folder)
    copied = pickle.loads(pickle.dumps(encoder))
    assert (copied.encode("[SEP] [MASK]") == encoder.encode("[SEP] [MASK]")).all()


def test_save(golden: Golden, tmp_path: Path) -> None:
    encoder = pyenc.load(golden.folder)
    encoder.save(tmp_path / "saved")
    again = pyenc.load(tmp_path / "saved")
    assert (again.encode(golden.texts) == encoder.encode(golden.texts)).all()
    assert again.recipe == encoder.recipe
    assert again.max_length == encoder.max_length


def test_old_layout_with_a_transformer_folder(tmp_path: Path) -> None:
    """sentence-transformers once put the encoder into 0_Transformer."""
    source, folder = GOLDEN / "bert_mean_h4", tmp_path / "old"
    shutil.copytree(source, folder / "0_Transformer")
    shutil.copytree(source / "1_Pooling", folder / "1_Pooling")
    modules = json.loads((source / "modules.json").read_text())
    modules[0]["path"] = "0_Transformer"
    (folder / "modules.json").write_text(json.dumps(modules))
    encoder = pyenc.load(folder)
    assert encoder.max_length == 256
    expected = pyenc.load(source).encode(TEXTS)
    assert (encoder.encode(TEXTS) == expected).all()
    encoder.save(tmp_path / "saved")
    assert (pyenc.load(tmp_path / "saved").encode(TEXTS) == expected).all()


@pytest.mark.parametrize("pooling", ["1_Pooling", "./1_Pooling", "1_Pooling//"])
@pytest.mark.parametrize("encoder", ["", ".", "enc", "enc/", "./enc"])
def test_folders_of_modules_in_any_spelling(encoder: str, pooling: str, tmp_path: Path) -> None:
    """What is set since is written over the files that are read, not beside them."""
    folder, saved = tmp_path / "model", tmp_path / "saved"
    shutil.copytree(GOLDEN / "bert_mean_h4", folder)
    modules = json.loads((folder / "modules.json").read_text())
    modules[0]["path"], modules[1]["path"] = encoder, pooling
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling/config.json").write_text('{"embedding_dimension": 64}')
    (folder / encoder).mkdir(exist_ok=True)
    for file in ("config.json", "model.safetensors", "sentence_bert_config.json", "tokenizer.json"):
        shutil.move(folder / file, folder / encoder / file)
    ours = pyenc.load(folder, pooling="cls", dtype="bfloat16")
    ours.max_length = 7
    ours.save(saved)
    again = pyenc.load(saved, dtype="auto")
    assert (again.max_length, again.recipe.pooling, again.model.dtype) == (7, "cls", torch.bfloat16)
    assert json.loads((saved / encoder / "config.json").read_text())["torch_dtype"] == "bfloat16"
    assert json.loads((saved / "1_Pooling/config.json").read_text())["embedding_dimension"] == 64
    assert (again.encode("the sky") == ours.encode("the sky")).all()


def test_no_folder() -> None:
    encoder = pyenc.load(GOLDEN / "bert_mean_h4")
    with pytest.raises(TypeError, match="save: folder must be a path, got NoneType"):
        encoder.save(None)  # type: ignore[arg-type]
