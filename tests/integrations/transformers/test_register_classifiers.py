"""Classifiers after `pyenc.register()`: rerankers that need remote code, by AutoModel and
CrossEncoder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import pyenc
from pyenc.errors import CheckpointError, InputError
from tests.conftest import GOLDEN, read_golden
from tests.seeds import seed

# By a module of it: a folder of tests has its name.
pytest.importorskip("transformers.modeling_utils")

from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForSequenceClassification,
    XLMRobertaConfig,
    XLMRobertaForSequenceClassification,
    pipeline,
)

from tests.integrations.transformers.register_support import copied, fresh
from tests.integrations.transformers.register_support import registered as registered

pytestmark = pytest.mark.usefixtures("registered")

OFF = 2e-5
POOLED = (
    "gte_base_like_h4", "gte_multilingual_like_h4", "jina_geglu_h4", "jina_original_h4",
    "jina_qk_h4", "jina_reglu_h4", "mosaic_base_h12", "mosaic_mlm_h4",
)  # fmt: skip
"""Families whose classifier stands behind a pooler, as BERT's."""
PAIRS = [("the sky", "is blue today"), ("a", "the quick brown fox"), ("", "x")]


def drawn(*shape: int, more: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed() + sum(shape) + more)
    return torch.randn(shape, generator=generator) / 4


def classifier(folder: Path, name: str, labels: int = 1, **config: Any) -> Path:
    """A golden checkpoint with a pooler and a classifier among its tensors."""
    said = {"id2label": {str(i): f"L{i}" for i in range(labels)}, "label2id": None}
    copied(name, folder, architectures=["AForSequenceClassification"], **(said | config))
    pickled = folder / "pytorch_model.bin"
    if pickled.is_file():
        tensors = torch.load(pickled, weights_only=True)
        pickled.unlink()
    else:
        tensors = load_file(folder / "model.safetensors")
    word = next(n for n in tensors if n.endswith("embeddings.word_embeddings.weight"))
    prefix, width = word.removesuffix("embeddings.word_embeddings.weight"), tensors[word].shape[1]
    tensors[f"{prefix}pooler.dense.weight"] = drawn(width, width)
    tensors[f"{prefix}pooler.dense.bias"] = drawn(width)
    tensors["classifier.weight"], tensors["classifier.bias"] = drawn(labels, width), drawn(labels)
    tensors = {n: t.clone() for n, t in tensors.items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def expected(folder: Path, ids: Tensor, mask: Tensor, types: Tensor | None) -> Tensor:
    """The formula in doubles, of the states that pyenc has of the golden checkpoint."""
    model = pyenc.load(folder, pooling="cls", normalize=False, dtype="float64", skip_eps=0).model
    tensors = load_file(folder / "model.safetensors")
    pooler = next(n for n in tensors if n.endswith("pooler.dense.weight")).removesuffix("weight")
    with torch.no_grad():
        first = model(ids, mask, types)[:, 0]
        pooled = torch.tanh(
            first @ tensors[f"{pooler}weight"].double().T + tensors[f"{pooler}bias"].double()
        )
        return pooled @ tensors["classifier.weight"].double().T + tensors["classifier.bias"]


@torch.no_grad()
@pytest.mark.parametrize("labels", [1, 3])
@pytest.mark.parametrize("name", POOLED)
def test_behind_a_pooler(tmp_path: Path, name: str, labels: int) -> None:
    folder = classifier(tmp_path / "c", name, labels)
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32)
    assert type(model).__name__ == "PyencForSequenceClassification"
    assert (model.config.num_labels, model.training) == (labels, False)
    golden, compared = read_golden(name), 0
    for batch in golden.batches:
        if golden.expected(batch, "last_hidden_state") is None:
            continue
        ids, mask, types = golden.inputs(batch)
        if not bool(mask[:, 0].all()):  # which is refused, below
            continue
        got = model(input_ids=ids, attention_mask=mask, token_type_ids=types)
        off = (got.logits - expected(folder, ids, mask, types)).abs().max()
        assert off <= OFF, f"{batch}: off by {off:.2g}"
        compared += 1
    assert compared >= 3


def reranker(folder: Path, **said: Any) -> XLMRobertaForSequenceClassification:
    """jina-reranker-v2's layout, of a model of transformers' XLM-RoBERTa, which computes the same:
    tensors by the names of its original code, a `config.json` without `model_type`."""
    torch.manual_seed(seed())
    sizes: dict[str, Any] = {
        "vocab_size": 384, "hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
        "intermediate_size": 96, "max_position_embeddings": 66, "type_vocab_size": 1,
        "layer_norm_eps": 1e-5, "pad_token_id": 1, "id2label": {"0": "LABEL_0"},
    }  # fmt: skip
    model = XLMRobertaForSequenceClassification(XLMRobertaConfig(**sizes)).eval()
    for parameter in model.parameters():
        parameter.data = torch.randn(parameter.shape) / 5
    renamed = {
        "embeddings.LayerNorm": "emb_ln", "encoder.layer.": "encoder.layers.",
        "attention.output.dense": "mixer.out_proj", "attention.output.LayerNorm": "norm1",
        "intermediate.dense": "mlp.fc1", "output.LayerNorm": "norm2", ".output.dense": ".mlp.fc2",
    }  # fmt: skip
    tensors = {}
    for name, tensor in model.state_dict().items():
        for theirs, its in renamed.items():
            name = name.replace(theirs, its)
        tensors[name] = tensor.clone()
    for i in range(2):
        layer = f"roberta.encoder.layers.{i}"
        for end in ("weight", "bias"):
            parts = [
                tensors.pop(f"{layer}.attention.self.{x}.{end}") for x in ("query", "key", "value")
            ]
            tensors[f"{layer}.mixer.Wqkv.{end}"] = torch.cat(parts)
    copied("xlmr_e5_like_h2", folder)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    code = "xlm_roberta.XLMRobertaFor"
    config = sizes | {
        "architectures": ["XLMRobertaForSequenceClassification"], "num_labels": 1,
        "auto_map": {
            "AutoConfig": "configuration_xlm_roberta.XLMRobertaFlashConfig",
            "AutoModelForSequenceClassification": f"modeling_{code}SequenceClassification",
        },
        "classifier_dropout": None, "emb_pooler": None, "hidden_act": "gelu",
        "hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1, "use_flash_attn": True,
        "position_embedding_type": "absolute", "torch_dtype": "float32",
    } | said  # fmt: skip
    (folder / "config.json").write_text(
        json.dumps({k: v for k, v in config.items() if v is not ...})
    )
    return model


def batch() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed() + 1)
    ids = torch.randint(3, 380, (3, 20), generator=generator)
    mask = torch.ones_like(ids)
    ids[:, 0], ids[1, 9:], mask[1, 9:] = 0, 1, 0
    return {"input_ids": ids, "attention_mask": mask}


@torch.no_grad()
@pytest.mark.parametrize("kind", [..., "xlm-roberta"])
def test_of_a_dense_layer_of_its_own(tmp_path: Path, kind: Any) -> None:
    """And positions of a table, in the layers of jina-embeddings-v3."""
    right = reranker(tmp_path / "r", model_type=kind)
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "r")
    assert type(model).__name__ == "PyencForSequenceClassification"
    given = batch()
    assert (model(**given).logits - right(**given).logits).abs().max() <= OFF
    states = AutoModel.from_pretrained(tmp_path / "r")(**given).last_hidden_state
    theirs = right.roberta(**given).last_hidden_state
    assert (states - theirs)[given["attention_mask"] == 1].abs().max() <= OFF
    encoder = pyenc.load(tmp_path / "r", pooling="mean", normalize=False)
    assert encoder.max_length == 64
    encoder.save(tmp_path / "again")
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path / "again")
    assert torch.equal(again(**given).logits, model(**given).logits)


@pytest.mark.parametrize("name", ["jina_geglu_h4", "gte_multilingual_like_h4", "jina-reranker-v2"])
def test_cross_encoder(tmp_path: Path, name: str) -> None:
    """What people load them by; scores are a sigmoid's of the logit."""
    CrossEncoder = pytest.importorskip("sentence_transformers").CrossEncoder
    if name == "jina-reranker-v2":
        reranker(tmp_path / "c")
    else:
        classifier(tmp_path / "c", name)
    if name.startswith("gte"):  # whose published tokenizer is XLM-RoBERTa's, without types
        path = tmp_path / "c" / "tokenizer_config.json"
        said = json.loads(path.read_text()) | {"model_input_names": ["input_ids", "attention_mask"]}
        path.write_text(json.dumps(said))
    model = CrossEncoder(str(tmp_path / "c"), device="cpu")
    assert model.num_labels == 1
    scores = model.predict(PAIRS)
    given = model.tokenizer([list(pair) for pair in PAIRS], padding=True, return_tensors="pt")
    given = {
        k: v for k, v in given.items() if k in ("input_ids", "attention_mask", "token_type_ids")
    }
    with torch.no_grad():
        right = torch.sigmoid(model.model(**given).logits[:, 0])
    np.testing.assert_allclose(scores, right.numpy(), atol=1e-5)
    assert np.ptp(scores) > 1e-5
    ranked = model.rank("the sky", [document for _, document in PAIRS])
    assert len(ranked) == 3
    with pytest.warns(pyenc.AccelerationWarning, match="is pyenc's already"):
        pyenc.accelerate(model)
    model.save_pretrained(str(tmp_path / "saved"))
    again = CrossEncoder(str(tmp_path / "saved"), device="cpu")
    np.testing.assert_array_equal(again.predict(PAIRS), scores)


def test_a_pipeline(tmp_path: Path) -> None:
    folder = classifier(tmp_path, "jina_geglu_h4", 3)
    found = pipeline("text-classification", str(folder), device="cpu", top_k=None)(["the sky"])
    scores = {each["label"]: each["score"] for each in found[0]}
    assert set(scores) == {"L0", "L1", "L2"}
    assert abs(sum(scores.values()) - 1) <= 1e-5


@pytest.mark.parametrize("labels", [1, 3])
def test_loss_and_gradients(tmp_path: Path, labels: int) -> None:
    """As transformers' own, for the same layers."""
    right = reranker(tmp_path / "r")
    folder = tmp_path / "r"
    config = json.loads((folder / "config.json").read_text())
    if labels > 1:
        head = right.classifier
        head.out_proj.weight.data = drawn(labels, 48)
        head.out_proj.bias.data = drawn(labels)
        tensors = load_file(folder / "model.safetensors")
        tensors["classifier.out_proj.weight"] = head.out_proj.weight.detach().clone()
        tensors["classifier.out_proj.bias"] = head.out_proj.bias.detach().clone()
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        config |= {"num_labels": labels, "id2label": {str(i): str(i) for i in range(labels)}}
        right.num_labels = right.config.num_labels = labels
        (folder / "config.json").write_text(json.dumps(config))
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    wanted = torch.tensor([0.0, 1.0, 0.5]) if labels == 1 else torch.tensor([0, 2, 1])
    found, expected = (m(**batch(), labels=wanted) for m in (model, right))
    assert abs(found.loss - expected.loss) <= 1e-5
    for out in (found, expected):
        out.loss.backward()
    for path in ("dense", "out_proj"):
        theirs = getattr(right.classifier, path).weight.grad
        own = model.get_submodule(f"classifier.{path}").weight.grad
        assert (own - theirs).abs().max() <= 1e-5 * theirs.abs().max().clamp(min=1)
    word = right.roberta.embeddings.word_embeddings.weight.grad
    own = model.get_input_embeddings().weight.grad
    assert (own - word).abs().max() <= 1e-4 * word.abs().max()


def test_dropout_in_training(tmp_path: Path) -> None:
    reranker(tmp_path / "r", classifier_dropout=0.5, hidden_dropout_prob=0.0,
             attention_probs_dropout_prob=0.0)  # fmt: skip
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "r")
    assert torch.equal(model(**batch()).logits, model(**batch()).logits)
    model.train()
    first, second = (model(**batch()).logits for _ in range(2))
    assert not torch.equal(first, second)


@pytest.mark.parametrize("name", ["jina_geglu_h4", "mosaic_mlm_h4"])
def test_what_was_trained_is_written(tmp_path: Path, name: str) -> None:
    model = AutoModelForSequenceClassification.from_pretrained(classifier(tmp_path / "c", name, 2))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.01
    model.save_pretrained(tmp_path / "saved")
    stored = load_file(tmp_path / "saved" / "model.safetensors")
    assert torch.equal(stored["classifier.weight"], model.classifier.weight)
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path / "saved")
    ids, mask, types = read_golden(name).inputs("ragged")
    with torch.no_grad():
        one, other = (m(ids, mask, types).logits for m in (model, again))
    assert torch.equal(one, other)
    # The published names, as a trainer reads them back; and the model's own, as it writes them.
    fresh_one = AutoModelForSequenceClassification.from_pretrained(tmp_path / "c")
    fresh_one.load_state_dict(stored, strict=True)
    assert torch.equal(fresh_one.classifier.bias, model.classifier.bias)
    fresh_one.save_pretrained(tmp_path / "state", state_dict=model.state_dict())
    stored_too = load_file(tmp_path / "state" / "model.safetensors")
    assert all(torch.equal(stored[n], stored_too[n]) for n in stored)
    with pytest.raises(InputError, match=r"state_dict: 'classifier.weight' is missing"):
        model.save_pretrained(
            tmp_path / "x", state_dict=model.encoder.state_dict(prefix="encoder.")
        )


def test_labels_that_no_file_says(tmp_path: Path) -> None:
    """As many as the weights have."""
    folder = classifier(tmp_path, "jina_geglu_h4", 3, id2label=None)
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    assert model.config.num_labels == 3
    folder = classifier(tmp_path / "said", "jina_geglu_h4", 1, id2label=None, num_labels=1)
    assert AutoConfig.from_pretrained(folder).num_labels == 1


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


@pytest.mark.parametrize(
    "said",
    [
        {"sentence_transformers": {"activation_fn": "torch.nn.modules.linear.Identity"}},
        {"sbert_ce_default_activation_function": "torch.nn.modules.linear.Identity"},
    ],
    ids=lambda said: next(iter(said)),
)
def test_the_activation_of_its_scores(tmp_path: Path, said: dict[str, Any]) -> None:
    """Where config.json says it, as CrossEncoder wrote it for years."""
    CrossEncoder = pytest.importorskip("sentence_transformers").CrossEncoder
    folder = classifier(tmp_path / "c", "jina_geglu_h4", **said)
    for name in ("modules.json", "config_sentence_transformers.json"):
        (folder / name).unlink()
    model = CrossEncoder(str(folder), device="cpu")
    assert type(model.activation_fn).__name__ == "Identity"
    given = model.tokenizer([list(pair) for pair in PAIRS], padding=True, return_tensors="pt")
    with torch.no_grad():
        right = model.model(**given).logits[:, 0]
    np.testing.assert_allclose(model.predict(PAIRS), right.numpy(), atol=1e-5)


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


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod."])
def test_below_a_wrapper(tmp_path: Path, prefix: str) -> None:
    """Found as the encoder's tensors are, and written back under its name."""
    right = AutoModelForSequenceClassification.from_pretrained(
        classifier(tmp_path / "c", "jina_geglu_h4")
    )
    folder = classifier(tmp_path / "w", "jina_geglu_h4")
    tensors = {f"{prefix}{n}": t for n, t in load_file(folder / "model.safetensors").items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    ids, mask, types = read_golden("jina_geglu_h4").inputs("ragged")
    with torch.no_grad():
        assert torch.equal(model(ids, mask, types).logits, right(ids, mask, types).logits)
    model.save_pretrained(tmp_path / "saved")
    assert load_file(tmp_path / "saved" / "model.safetensors").keys() == tensors.keys()
    model.load_state_dict(tensors)
    with pytest.raises(InputError, match=r"'foo.weight' is none of the checkpoint's names"):
        model.load_state_dict(tensors | {"foo.weight": torch.ones(1)})
    del tensors[f"{prefix}classifier.weight"]
    with pytest.raises(InputError, match=r"classifier.weight' is missing"):
        model.load_state_dict(tensors)


def test_of_no_tokens(tmp_path: Path) -> None:
    model = AutoModelForSequenceClassification.from_pretrained(classifier(tmp_path, POOLED[2]))
    with pytest.raises(InputError, match="reads each row's first state; got no tokens"):
        model(torch.zeros(2, 0, dtype=torch.long))
    assert model(torch.zeros(0, 3, dtype=torch.long)).logits.shape == (0, 1)


def test_adapters_of_tasks_beside_a_table(tmp_path: Path) -> None:
    """Merged and saved by the original's own config.json: transformers' class has no table."""
    said = {
        "lora_adaptations": ["one"], "lora_rank": 4, "lora_alpha": 1, "load_trained_adapters": True,
        "task_instructions": {"one": "so: "}, "model_type": "xlm-roberta",
    }  # fmt: skip
    folder = tmp_path / "r"
    reranker(folder, **said)
    tensors = load_file(folder / "model.safetensors")
    layer = "roberta.encoder.layers.0.mixer.Wqkv"
    weight = tensors.pop(f"{layer}.weight")
    factors = {"original": weight, "0.lora_A": drawn(1, 4, 48), "0.lora_B": drawn(1, 144, 4)}
    tensors |= {f"{layer}.parametrizations.weight.{n}": t for n, t in factors.items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    encoder = pyenc.load(folder, pooling="mean", normalize=False, task="one", device="cpu")
    right = weight + factors["0.lora_B"][0] @ factors["0.lora_A"][0] / 4
    qkv = encoder.model.state_dict()["layers.0.attention.qkv.weight"]
    assert (qkv - right).abs().max() <= 1e-6
    encoder.save(tmp_path / "saved")
    again = pyenc.load(tmp_path / "saved", device="cpu")
    assert torch.equal(again.model.state_dict()["layers.0.attention.qkv.weight"], qkv)
    with torch.no_grad():
        logits = AutoModelForSequenceClassification.from_pretrained(tmp_path / "saved")(**batch())
    assert torch.isfinite(logits.logits).all()
