"""Classifiers after `pyenc.register()`: their labels, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import pyenc
from pyenc.errors import CheckpointError, InputError
from tests.conftest import GOLDEN

# By a module of it: a folder of tests has its name.
pytest.importorskip("transformers.modeling_utils")

from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification

from tests.integrations.transformers.classifier_folders import POOLED, classifier, reranker
from tests.integrations.transformers.register_support import fresh
from tests.integrations.transformers.register_support import registered as registered

pytestmark = pytest.mark.usefixtures("registered")


def test_labels_that_no_file_says(tmp_path: Path) -> None:
    """As many as the weights have."""
    folder = classifier(tmp_path, "jina_geglu_h4", 3, id2label=None)
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    assert model.config.num_labels == 3
    folder = classifier(tmp_path / "said", "jina_geglu_h4", 1, id2label=None, num_labels=1)
    assert AutoConfig.from_pretrained(folder).num_labels == 1


def test_what_a_call_says_of_labels(tmp_path: Path) -> None:
    """Names by numbers, strings or not, and the kind of problem."""
    folder = classifier(tmp_path, "jina_geglu_h4", 2)
    model = AutoModelForSequenceClassification.from_pretrained(
        folder, id2label={"0": "no", "1": "yes"}, problem_type="multi_label_classification"
    )
    assert model.config.id2label == {0: "no", 1: "yes"}
    model.save_pretrained(tmp_path / "saved")
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path / "saved")
    assert (again.config.id2label, again.config.problem_type) == (
        {0: "no", 1: "yes"}, "multi_label_classification",
    )  # fmt: skip
    pyenc.load(tmp_path / "saved", pooling="mean", normalize=False).save(tmp_path / "published")
    last = AutoModelForSequenceClassification.from_pretrained(tmp_path / "published")
    assert last.config.to_dict()["id2label"] == {0: "no", 1: "yes"}
    last.config.id2label = {0: "LABEL_0", 1: "LABEL_1"}
    last.config.label2id = {"LABEL_0": 0, "LABEL_1": 1}
    last.save_pretrained(tmp_path / "default")
    assert AutoConfig.from_pretrained(tmp_path / "default").id2label[1] == "LABEL_1"


def edited(folder: Path, **tensors: Tensor | None) -> Path:
    stored = load_file(folder / "model.safetensors") | tensors
    kept = {name: tensor for name, tensor in stored.items() if tensor is not None}
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


WRONG: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "none": ({}, {"classifier.weight": None, "classifier.bias": None},
             r"no classifier: the weights lack 'classifier.weight', and none is made anew"),
    "no bias": ({}, {"classifier.bias": None}, r"the weights lack 'classifier.bias'"),
    "width": ({}, {"classifier.weight": torch.ones(1, 65)},
              r"'classifier' is torch.float32 \(1, 65\) with a bias of \(1,\); expected"),
    "no rows": ({}, {"classifier.weight": torch.ones(0, 64), "classifier.bias": torch.ones(0)},
                r"'classifier' is torch.float32 \(0, 64\)"),
    "whole numbers": ({}, {"classifier.weight": torch.ones(1, 64, dtype=torch.int32)},
                      r"'classifier' is torch.int32"),
    "not finite": ({}, {"classifier.weight": torch.full((1, 64), torch.nan)}, r"has nan at"),
    "pooler": ({}, {"pooler.dense.weight": None, "pooler.dense.bias": None},
               r"no pooler.dense among the tensors"),
    "labels": ({"id2label": {"0": "a", "1": "b"}}, {},
               r"2 labels \(num_labels, id2label\) are wanted, and .* a classifier of 1"),
    "labels said": ({"id2label": None, "num_labels": 4}, {}, r"4 labels .* a classifier of 1"),
    "labels of no kind": ({"id2label": None, "num_labels": "x"}, {}, r"num_labels must be a whole"),
    "labels in two ways": ({"num_labels": 2}, {}, r"num_labels is 2, and id2label names 1"),
    "labels from one on": ({"id2label": {"1": "a"}}, {}, r"id2label names 1; expected 0 to 0"),
    "names of no kind": ({"id2label": ["a"]}, {}, r"id2label must be labels by whole numbers"),
    "names by no numbers": ({"id2label": {"x": "a"}}, {}, r"id2label must be labels by whole"),
    "numbers of no kind": ({"label2id": "x"}, {}, r"label2id must be numbers by label, got 'x'"),
    "problem": ({"problem_type": "foo"}, {}, r"problem_type 'foo' is unknown; known: regression"),
    "dropout": ({"classifier_dropout": 2}, {}, r"classifier_dropout must be null or a number"),
    "dropout of no kind": ({"classifier_dropout": "x"}, {}, r"classifier_dropout must be null or"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_refused(tmp_path: Path, case: str) -> None:
    config, tensors, message = WRONG[case]
    folder = edited(classifier(tmp_path, "jina_geglu_h4", **config), **tensors)
    with pytest.raises(CheckpointError, match=message):
        AutoModelForSequenceClassification.from_pretrained(folder)


def test_others_that_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"pyenc knows no classifier of NeoBERT"):
        AutoModelForSequenceClassification.from_pretrained(GOLDEN / "neobert_like_h4")
    folder = classifier(tmp_path, "jina_geglu_h4")
    for number in (5, 2):
        with pytest.raises(CheckpointError, match=rf"{number} labels .* are wanted"):
            AutoModelForSequenceClassification.from_pretrained(folder, num_labels=number)
    unsaid = classifier(tmp_path / "unsaid", "jina_geglu_h4", 3, id2label=None)
    said = classifier(tmp_path / "said", "jina_geglu_h4", 3, num_labels=3)
    for each in (unsaid, said):
        for number in (2, 5):
            with pytest.raises(CheckpointError, match=rf"{number} labels .* are wanted"):
                AutoModelForSequenceClassification.from_pretrained(each, num_labels=number)
    for given, message in (
        ({"num_labels": "3"}, "num_labels must be a whole number from 1 on, got '3'"),
        ({"problem_type": "foo"}, "problem_type 'foo' is unknown"),
        ({"num_labels": 4, "id2label": {0: "a"}}, "num_labels is 4, and id2label names 1"),
    ):
        with pytest.raises(InputError, match=message):
            AutoModelForSequenceClassification.from_pretrained(said, **given)
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    with pytest.raises(InputError, match="inputs_embeds is not served"):
        model(inputs_embeds=torch.ones(1, 2, 64))


PADDING: list[tuple[dict[str, Any], str]] = [
    ({"pad_token_id": None}, r"pad_token_id must be a whole number from 0 .* got None"),
    ({"pad_token_id": -1}, r"pad_token_id must be a whole number from 0 .* got -1"),
    ({"pad_token_id": 65}, r"leaves no position after the padding id 65"),
    ({"position_embedding_type": "alibi"}, r"position_embedding_type is 'alibi'"),
]


@pytest.mark.parametrize(("said", "message"), PADDING, ids=str)
def test_positions_that_cannot_be_counted(
    tmp_path: Path, said: dict[str, Any], message: str
) -> None:
    reranker(tmp_path, model_type="xlm-roberta", **said)
    with pytest.raises(pyenc.PyencError, match=message):
        pyenc.load(tmp_path)


@pytest.mark.slow
def test_transformers_alone_does_not_load_it(tmp_path: Path) -> None:
    reranker(tmp_path)
    ran = fresh(
        "import sys\nfrom transformers import AutoModelForSequenceClassification as A\n"
        "A.from_pretrained(sys.argv[1])",
        tmp_path,
    )
    assert ran.returncode


def test_a_row_that_begins_with_padding(tmp_path: Path) -> None:
    """Its first state is never made, and its logits would be those of zeros."""
    model = AutoModelForSequenceClassification.from_pretrained(classifier(tmp_path, POOLED[2]))
    ids = torch.randint(5, 60, (2, 4))
    mask = torch.tensor([[1, 1, 1, 1], [0, 1, 1, 1]])
    with pytest.raises(InputError, match=r"a row begins with padding, .*; expected padding on the"):
        model(ids, mask)
    assert torch.isfinite(model(ids, mask.flip(1)).logits).all()


def test_of_no_tokens(tmp_path: Path) -> None:
    model = AutoModelForSequenceClassification.from_pretrained(classifier(tmp_path, POOLED[2]))
    with pytest.raises(InputError, match="reads each row's first state; got no tokens"):
        model(torch.zeros(2, 0, dtype=torch.long))
    assert model(torch.zeros(0, 3, dtype=torch.long)).logits.shape == (0, 1)


def test_what_its_checkpoint_cannot_hold(tmp_path: Path) -> None:
    """Not written in part, nor something else in its place."""
    folder = classifier(tmp_path / "c", "jina_geglu_h4", 2)
    cases: list[tuple[str, Any, str]] = [
        ("classifier", torch.nn.Linear(64, 2, bias=False), "parameter classifier.bias is gone"),
        ("classifier", torch.nn.Sequential(torch.nn.Linear(64, 2)), "classifier.0.weight is none"),
        ("classifier", torch.nn.Linear(64, 5), r"classifier.weight is \(5, 64\), which would not"),
        ("", None, "has nan"),
        ("extra", torch.nn.Linear(3, 3), "parameter extra.weight is none of its checkpoint's"),
    ]  # fmt: skip
    for name, module, message in cases:
        model = AutoModelForSequenceClassification.from_pretrained(folder)
        if module is None:
            torch.nn.init.constant_(model.classifier.weight, float("nan"))
        else:
            setattr(model, name, module)
        with pytest.raises(CheckpointError, match=message):
            model.save_pretrained(tmp_path / "saved")
        assert not (tmp_path / "saved" / "model.safetensors").exists()
    plain = AutoModel.from_pretrained(folder)
    plain.extra = torch.nn.Linear(3, 3)
    with pytest.raises((CheckpointError, InputError), match="extra"):
        plain.save_pretrained(tmp_path / "saved")
    with pytest.raises((CheckpointError, InputError), match="extra"):
        plain.save_pretrained(tmp_path / "saved", state_dict=plain.state_dict())
