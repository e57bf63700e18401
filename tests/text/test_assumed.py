"""What a checkpoint's files leave open is assumed aloud, can be said, and what is said is saved."""

from __future__ import annotations

import json
import pickle
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pyenc
from pyenc.errors import InputError, InputTypeError
from pyenc.text.recipe import POOLINGS
from tests.conftest import GOLDEN

TEXTS = ["the sky is blue", "", "a quick brown fox jumps over the lazy dog"]
BY_HAND = {
    "cls": lambda x: x[0],
    "max": lambda x: x.max(0),
    "lasttoken": lambda x: x[-1],
    "mean": lambda x: x.mean(0),
    "weightedmean": lambda x: np.average(x, 0, np.arange(1, len(x) + 1)),
    "mean_sqrt_len_tokens": lambda x: x.sum(0) / len(x) ** 0.5,
}
SEVERAL = [("cls", "mean"), ("weightedmean", "cls")]


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    """A CLS checkpoint as a plain BERT folder: no file says how its vectors are made."""
    folder = tmp_path / "plain"
    shutil.copytree(GOLDEN / "bert_cls_h2", folder)
    (folder / "modules.json").unlink()
    shutil.rmtree(folder / "1_Pooling")
    return folder


@contextmanager
def heard() -> Iterator[list[pyenc.AssumptionWarning]]:
    """The assumptions warned of."""
    told: list[pyenc.AssumptionWarning] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield told
    for each in caught:
        assert isinstance(each.message, pyenc.AssumptionWarning), each
        assert each.filename == __file__
        told.append(each.message)


def by_hand(
    encoder: pyenc.TextEncoder, pooling: str | tuple[str, ...], normalize: bool
) -> np.ndarray:
    poolings = [pooling] if isinstance(pooling, str) else pooling
    states = [row.vectors for row in encoder.encode(TEXTS, output="tokens")]
    rows = np.stack([np.concatenate([BY_HAND[each](x) for each in poolings]) for x in states])
    return rows / np.linalg.norm(rows, axis=1, keepdims=True) if normalize else rows


def test_one_warning_that_says_what_and_how(plain: Path) -> None:
    with heard() as told:
        encoder = pyenc.load(plain)
        encoder.encode(TEXTS)
    (warning,) = told
    assert warning.assumed == encoder.recipe.assumed == ("pooling", "normalize")
    for word in (str(plain), "mean pooling", "no normalisation", "pooling=", "normalize=", "--poo"):
        assert word in str(warning)
    np.testing.assert_allclose(encoder.encode(TEXTS), by_hand(encoder, "mean", False), atol=1e-5)


def test_of_a_family_it_is_its_model_cards(tmp_path: Path) -> None:
    """And not sentence-transformers', which takes the mean."""
    folder = tmp_path / "gte"
    shutil.copytree(GOLDEN / "gte_base_like_h4", folder)
    (folder / "modules.json").unlink()
    shutil.rmtree(folder / "1_Pooling")
    with heard() as told:
        encoder = pyenc.load(folder)
    assert encoder.recipe.pooling == "cls"
    assert "cls pooling and no normalisation, as its family's model cards have it" in str(told[0])
    assert "sentence-transformers takes the mean" in str(told[0])


def test_other_files_count_and_that_is_said(plain: Path) -> None:
    """sentence-transformers reads none of them without modules.json."""
    for limit, said in ((9, True), (None, False)):
        path = plain / "sentence_bert_config.json"
        path.write_text(json.dumps({"max_seq_length": limit, "do_lower_case": False}))
        with heard() as told:
            encoder = pyenc.load(plain)
        assert (encoder.max_length == 9) is said
        assert ("which sentence-transformers passes over" in str(told[0])) is said


@pytest.mark.parametrize(
    ("said", "left", "words"),
    [
        ({"pooling": "cls"}, ("normalize",), "assumed no normalisation, as"),
        ({"normalize": True}, ("pooling",), "assumed mean pooling, as"),
        ({"normalize": False}, ("pooling",), "assumed mean pooling, as"),
    ],
)
def test_what_was_not_said_is_still_assumed(
    plain: Path, said: dict[str, Any], left: tuple[str, ...], words: str
) -> None:
    with heard() as told:
        encoder = pyenc.load(plain, **said)
    assert [each.assumed for each in told] == [left]
    assert words in str(told[0])
    assert encoder.recipe.assumed == left


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("pooling", [*POOLINGS, *SEVERAL], ids=str)
def test_what_is_said_is_done_and_saved(
    plain: Path, tmp_path: Path, pooling: str | tuple[str, ...], normalize: bool
) -> None:
    with heard() as told:
        encoder = pyenc.load(plain, pooling=pooling, normalize=normalize)
        vectors = encoder.encode(TEXTS)
        encoder.save(tmp_path / "saved")
        again = pyenc.load(tmp_path / "saved")
        again.save(tmp_path / "twice")
        third = pyenc.load(tmp_path / "twice")
    assert not told
    np.testing.assert_allclose(vectors, by_hand(encoder, pooling, normalize), atol=1e-5)
    for other in (again, third, pickle.loads(pickle.dumps(encoder))):
        assert (other.encode(TEXTS) == vectors).all()
        assert other.recipe.assumed == ()
    assert (again.max_length, again.recipe.prompts) == (encoder.max_length, encoder.recipe.prompts)


@pytest.mark.parametrize("said", [{"pooling": "cls"}, {"normalize": True}])
def test_half_said_and_saved(plain: Path, tmp_path: Path, said: dict[str, Any]) -> None:
    """The whole recipe is written: the same vectors, and nothing left to assume."""
    with pytest.warns(pyenc.AssumptionWarning):
        encoder = pyenc.load(plain, **said)
    encoder.save(tmp_path / "saved")
    with heard() as told:
        again = pyenc.load(tmp_path / "saved")
    assert not told
    assert (again.encode(TEXTS) == encoder.encode(TEXTS)).all()


@pytest.mark.parametrize("kind", ["BertForSequenceClassification", "BertModel", None])
def test_a_classifier_has_no_part_in_vectors(plain: Path, kind: str | None) -> None:
    """Of a reranker as most are published, without files of sentence-transformers."""
    path = plain / "config.json"
    said = json.loads(path.read_text()) | {"architectures": kind and [kind]}
    path.write_text(json.dumps(said))
    with heard() as told:
        pyenc.load(plain)
    words = "the classifier of its BertForSequenceClassification has no part in them"
    assert (words in str(told[0])) == (kind == "BertForSequenceClassification")


def test_nothing_said_and_saved(plain: Path, tmp_path: Path) -> None:
    """It is as open as it was."""
    with pytest.warns(pyenc.AssumptionWarning):
        encoder = pyenc.load(plain)
    encoder.save(tmp_path / "saved")
    assert not (tmp_path / "saved" / "modules.json").exists()
    with pytest.warns(pyenc.AssumptionWarning):
        again = pyenc.load(tmp_path / "saved")
    assert (again.encode(TEXTS) == encoder.encode(TEXTS)).all()


@pytest.mark.parametrize(
    ("golden", "pooling", "normalize"),
    [
        ("bert_cls_h2", "mean", False),
        ("bert_cls_h2", None, False),
        ("bert_mean_h4", "cls", None),
        ("jina_geglu_h4", None, True),
        ("mosaic_base_h12", "max", True),
        ("jina_mlm_prefix_h4", "lasttoken", True),
    ],
)
def test_before_what_the_files_say(
    tmp_path: Path, golden: str, pooling: str | None, normalize: bool | None
) -> None:
    files = pyenc.load(GOLDEN / golden).recipe
    encoder = pyenc.load(GOLDEN / golden, pooling=pooling, normalize=normalize)
    right = (pooling or files.pooling, files.normalize if normalize is None else normalize)
    assert (encoder.recipe.pooling, encoder.recipe.normalize) == right
    np.testing.assert_allclose(encoder.encode(TEXTS), by_hand(encoder, *right), atol=1e-5)
    encoder.save(tmp_path / "saved")
    again = pyenc.load(tmp_path / "saved")
    assert again.recipe == encoder.recipe
    assert (again.encode(TEXTS) == encoder.encode(TEXTS)).all()


def test_files_that_say_everything_are_quiet() -> None:
    with heard() as told:
        for golden in ("bert_cls_h2", "jina_geglu_h4", "mosaic_base_h12", "jina_mlm_prefix_h4"):
            assert pyenc.load(GOLDEN / golden).recipe.assumed == ()
    assert not told


def test_a_pooling_file_without_modules(plain: Path, tmp_path: Path) -> None:
    """What it says is no assumption, and is saved; whether to normalise stands nowhere."""
    shutil.copytree(GOLDEN / "bert_cls_h2" / "1_Pooling", plain / "1_Pooling")
    with heard() as told:
        encoder = pyenc.load(plain)
    assert [each.assumed for each in told] == [("normalize",)]
    assert "the pooling is cls, as is said, where sentence-transformers takes the mean" in str(
        told[0]
    )
    assert encoder.recipe.pooling == "cls"
    encoder.save(tmp_path / "saved")
    with pytest.warns(pyenc.AssumptionWarning):
        again = pyenc.load(tmp_path / "saved")
    assert (again.encode(TEXTS) == encoder.encode(TEXTS)).all()


@pytest.mark.parametrize("flags", [{}, {"pooling_mode_cls_token": False}])
def test_a_pooling_file_that_names_none(tmp_path: Path, flags: dict[str, bool]) -> None:
    folder = tmp_path / "model"
    shutil.copytree(GOLDEN / "bert_cls_h2", folder)
    (folder / "1_Pooling" / "config.json").write_text(
        json.dumps({"word_embedding_dimension": 64, **flags})
    )
    with heard() as told:
        encoder = pyenc.load(folder)
    assert [each.assumed for each in told] == [("pooling",)]
    assert (encoder.recipe.pooling, encoder.recipe.normalize) == ("mean", True)


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"pooling": "CLS"}, InputError, "pooling 'CLS' is not served; did you mean 'cls'?"),
        ({"pooling": "attention"}, InputError, "served: mean, cls, max, lasttoken, weightedmean, "),
        ({"pooling": ("cls", "avg")}, InputError, "pooling 'avg' is not served"),
        ({"pooling": []}, InputError, "pooling names none; served: one or more of mean"),
        ({"pooling": ""}, InputError, "pooling '' is not served"),
        (
            {"pooling": {"cls"}},
            InputTypeError,
            "pooling must be a string, a sequence of strings or",
        ),
        ({"pooling": ["cls", 1]}, InputTypeError, "or None, got ['cls', 1]"),
        ({"normalize": 1}, InputTypeError, "normalize must be True, False or None, got 1"),
    ],
)
def test_refused(options: dict[str, Any], kind: type[Exception], message: str) -> None:
    with pytest.raises(kind) as caught:
        pyenc.load("nowhere/at-all", **options)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    "said",
    [
        None, {"pooling": "cls", "normalize": True}, {"pooling": "max", "normalize": False},
        {"pooling": ["cls", "weightedmean"], "normalize": False},
        {"pooling": ["mean_sqrt_len_tokens", "max"], "normalize": True},
    ],
)  # fmt: skip
def test_as_sentence_transformers(plain: Path, tmp_path: Path, said: dict[str, Any] | None) -> None:
    """The folder itself, and what was saved of it, give there what they give here."""
    transformers = pytest.importorskip("sentence_transformers")
    if said is None:
        with pytest.warns(pyenc.AssumptionWarning):
            encoder = pyenc.load(plain)
        folder = plain
    else:
        encoder = pyenc.load(plain, **said)
        folder = tmp_path / "saved"
        encoder.save(folder)
    theirs = transformers.SentenceTransformer(str(folder), device="cpu").encode(TEXTS)
    np.testing.assert_allclose(encoder.encode(TEXTS), theirs, atol=2e-5)
