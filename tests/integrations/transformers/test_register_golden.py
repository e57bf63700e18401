"""After `pyenc.register()` plain transformers code gives what the original code gave."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import pyenc
from tests.conftest import CHECKPOINTS, GOLDEN, Golden, read_golden

# By a module of it: a folder of tests has its name.
pytest.importorskip("transformers.modeling_utils")

from transformers import AutoConfig, AutoModel, AutoModelForMaskedLM, AutoTokenizer, pipeline

from tests.integrations.transformers.register_support import (
    LEFT,
    OF_SENTENCES,
    SERVED,
    copied,
    hidden,
)
from tests.integrations.transformers.register_support import registered as registered

OFF = 1e-5
HEADS = ("jina_mlm_prefix_h4", "mosaic_mlm_h4")


@pytest.mark.usefixtures("registered")
@pytest.mark.parametrize("name", SERVED)
def test_auto_model(name: str) -> None:
    golden = read_golden(name)
    model = AutoModel.from_pretrained(golden.folder, dtype=torch.float32)
    assert type(model).__name__ == "PyencModel"
    assert not model.training
    compared = 0
    for batch in golden.batches:
        expected = golden.expected(batch, "last_hidden_state")
        if expected is None:
            continue
        inputs = golden.inputs(batch)
        got = hidden(model, inputs)
        off = (got.double() - expected)[inputs[1] == 1].abs().max()
        assert off <= OFF, f"{batch}: off by {off:.2g}"
        compared += 1
    assert compared >= 4


def normalized(golden: Golden) -> bool:
    path = golden.folder / "modules.json"
    return path.is_file() and "Normalize" in path.read_text("utf-8")


@pytest.mark.usefixtures("registered")
@pytest.mark.parametrize("name", OF_SENTENCES)
def test_sentence_transformer(name: str) -> None:
    SentenceTransformer = pytest.importorskip("sentence_transformers").SentenceTransformer
    golden = read_golden(name)
    model = SentenceTransformer(str(golden.folder), device="cpu", model_kwargs={"dtype": "float32"})
    assert type(model[0].auto_model).__name__ == "PyencModel"
    expected = golden.expected("text", "pooled_norm" if normalized(golden) else "pooled")
    assert expected is not None
    off = abs(model.encode(golden.texts) - expected.numpy()).max()
    assert off <= OFF


@pytest.mark.parametrize("name", LEFT)
def test_what_transformers_loads_right_is_left_to_it(name: str) -> None:
    """The same class, the same configuration, the same bits."""
    golden = read_golden(name)
    inputs = golden.inputs("ragged")
    kind = AutoModel
    if name.startswith("t5"):
        from transformers import T5EncoderModel as kind
    if name.startswith("modernbert"):
        inputs = (*inputs[:2], None)
    before = kind.from_pretrained(golden.folder)
    pyenc.register()
    try:
        after = kind.from_pretrained(golden.folder)
        config = AutoConfig.from_pretrained(golden.folder)
    finally:
        pyenc.unregister()
    assert type(after) is type(before)
    assert type(config) is type(before.config)
    assert after.config.to_dict() == before.config.to_dict()
    assert torch.equal(hidden(after, inputs), hidden(before, inputs))


def test_every_golden_checkpoint_is_one_or_the_other() -> None:
    # T5 has a decoder there, and DPR's class answers with vectors alone.
    others = {name for name in CHECKPOINTS if name.startswith(("t5", "dpr"))}
    assert {*SERVED, *LEFT, *others} == set(CHECKPOINTS)


@pytest.mark.parametrize("name", [n for n in SERVED if not n.startswith(("gte", "neo", "nomic"))])
def test_transformers_alone_gets_them_wrong(name: str) -> None:
    """Else there is no reason to serve them. GTE, NeoBERT and nomic-bert it does not load."""
    golden = read_golden(name)
    expected = golden.expected("ragged", "last_hidden_state")
    assert expected is not None
    if "_qk_" in name:  # its config.json names an attention that is not there
        with pytest.raises(ValueError, match="attn_implementation"):
            AutoModel.from_pretrained(golden.folder)
        return
    model = AutoModel.from_pretrained(golden.folder, dtype=torch.float32)
    inputs = golden.inputs("ragged")
    assert (hidden(model, inputs) - expected)[inputs[1] == 1].abs().max() > 0.1


@pytest.mark.usefixtures("registered")
@pytest.mark.parametrize("name", HEADS)
def test_masked_lm(name: str) -> None:
    golden = read_golden(name)
    model = AutoModelForMaskedLM.from_pretrained(golden.folder, dtype=torch.float32)
    ids, mask, types = golden.inputs("ragged")
    labels = torch.where(mask == 1, ids, -100)
    out = model(ids, mask, types, labels=labels)
    right = pyenc.load(golden.folder, pooling="mean").model.token_logits(ids, mask, types)
    assert (out.logits - right).abs().max() <= OFF
    loss = torch.nn.functional.cross_entropy(right[mask == 1], ids[mask == 1])
    assert abs(out.loss - loss) <= OFF
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    out.loss.backward()
    assert model.get_input_embeddings().weight.grad.abs().sum() > 0


@pytest.mark.usefixtures("registered")
def test_masked_lm_without_a_head() -> None:
    with pytest.raises(pyenc.CheckpointError, match="no masked-LM head"):
        AutoModelForMaskedLM.from_pretrained(GOLDEN / "jina_geglu_h4")


@pytest.mark.usefixtures("registered")
def test_pooler_output() -> None:
    golden = read_golden("mosaic_base_h12")
    expected = golden.expected("ragged", "pooler_output")
    model = AutoModel.from_pretrained(golden.folder, dtype=torch.float32)
    ids, mask, types = golden.inputs("ragged")
    assert (model(ids, mask, types).pooler_output - expected).abs().max() <= OFF
    without = AutoModel.from_pretrained(GOLDEN / "jina_mlm_prefix_h4")
    assert getattr(without(ids, mask, types), "pooler_output", None) is None


@pytest.mark.usefixtures("registered")
@pytest.mark.parametrize("trust", [True, False, None])
def test_remote_code_is_never_run(tmp_path: Path, trust: bool | None) -> None:
    """Whatever auto_map says, and whatever is trusted: a class that was registered stands before
    a repository's code, as transformers has it of every such class."""
    (tmp_path / "modeling_evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    evil = {"AutoConfig": "modeling_evil.Config", "AutoModel": "modeling_evil.Model"}
    folder = copied("jina_geglu_h4", tmp_path, auto_map=evil)
    model = AutoModel.from_pretrained(folder, trust_remote_code=trust)
    assert type(model).__name__ == "PyencModel"
    assert not hasattr(model.config, "auto_map")
    assert not (tmp_path / "ran").exists()


@pytest.mark.usefixtures("registered")
@pytest.mark.parametrize("name", ["jina_geglu_h4", "gte_multilingual_like_h4", "nomic_v1_like_h2"])
def test_tokenizer_is_the_same(name: str) -> None:
    """A configuration of another class must not lead AutoTokenizer elsewhere."""
    golden = read_golden(name)
    tokenizer = AutoTokenizer.from_pretrained(golden.folder)
    got = tokenizer(golden.texts, padding=True, return_tensors="pt")
    ids, mask, _ = golden.inputs("text")
    assert torch.equal(got["input_ids"][mask == 1], ids[mask == 1])


@pytest.mark.usefixtures("registered")
def test_tokenizer_class_by_model_type(tmp_path: Path) -> None:
    folder = copied("jina_geglu_h4", tmp_path / "m")
    settings = json.loads((folder / "tokenizer_config.json").read_text("utf-8"))
    named = settings.pop("tokenizer_class")
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    kind = type(AutoTokenizer.from_pretrained(folder)).__name__
    assert kind.removesuffix("Fast") == named.removesuffix("Fast") == "BertTokenizer"


@pytest.mark.usefixtures("registered")
def test_pipeline() -> None:
    golden = read_golden("jina_geglu_h4")
    extract = pipeline("feature-extraction", model=str(golden.folder), device="cpu")
    vectors = torch.tensor(extract(golden.texts[0])[0])
    expected = golden.expected("text", "pooled")
    assert expected is not None
    assert (vectors.double().mean(0) - expected[0]).abs().max() <= OFF


@pytest.mark.usefixtures("registered")
def test_other_heads_are_refused_and_not_random() -> None:
    from transformers import AutoModelForTokenClassification

    with pytest.raises(ValueError, match="PyencConfig"):
        AutoModelForTokenClassification.from_pretrained(GOLDEN / "jina_geglu_h4")
