"""nomic-bert with mixtures of experts inside transformers, whose own class has none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import pyenc
from tests.mixtures import CONFIG, TEXT, folder_of, hidden_states, tensors

# By a module of it: a folder of tests has its name.
pytest.importorskip("transformers.modeling_utils")

from transformers import AutoModel, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput

from pyenc.integrations.transformers.model import PyencModel
from tests.integrations.transformers.register_support import registered as registered

TEXTS = ["What is a mixture?", "Eight experts and a router, of which each token asks two."]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return folder_of(tmp_path / "published")


@pytest.mark.usefixtures("registered")
def test_registered(folder: Path, tmp_path: Path) -> None:
    """Served, trained, saved, and published again."""
    model = AutoModel.from_pretrained(folder, dtype=torch.float32)
    assert type(model) is PyencModel
    ids = torch.randint(4, 150, (1, 20))
    found = model(ids).last_hidden_state
    assert (found[0] - hidden_states(tensors(), ids[0])).abs().max() <= 1e-5
    found.sum().backward()
    assert all(p.grad is not None for p in model.parameters())
    model.save_pretrained(tmp_path / "saved")
    again = AutoModel.from_pretrained(tmp_path / "saved")
    assert torch.equal(again(ids).last_hidden_state, found)
    loaded = pyenc.load(tmp_path / "saved", pooling="mean", normalize=False, tokenizer=str(TEXT))
    loaded.save(tmp_path / "published again")
    written, right = load_file(tmp_path / "published again" / "model.safetensors"), tensors()
    assert written.keys() == right.keys()
    assert all(torch.equal(written[name], right[name]) for name in right)


@pytest.mark.usefixtures("registered")
def test_sentence_transformers(folder: Path) -> None:
    sentences = pytest.importorskip("sentence_transformers")
    found = sentences.SentenceTransformer(str(folder), device="cpu").encode(TEXTS)
    assert np.abs(found - pyenc.load(folder, device="cpu").encode(TEXTS)).max() <= 1e-6


class Settings(PretrainedConfig):
    model_type = "nomic_bert"


class Remote(PreTrainedModel):
    """A model with the names of the published code's, and the formula for its forward."""

    config_class = Settings

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        for name, tensor in tensors().items():
            *path, leaf = name.split(".")
            node: nn.Module = self
            for part in path:
                if not hasattr(node, part):
                    node.add_module(part, nn.Module())
                node = getattr(node, part)
            node.register_parameter(leaf, nn.Parameter(tensor))

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Any:
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        states = torch.zeros(*input_ids.shape, CONFIG["n_embd"])
        held = dict(self.named_parameters())
        for row, ids, there in zip(states, input_ids, mask == 1, strict=True):
            row[there] = hidden_states(held, ids[there]).float()
        return BaseModelOutput(last_hidden_state=states)


def test_accelerated_on_its_own_parameters() -> None:
    pytest.importorskip("sentence_transformers")
    from pyenc.integrations.borrowed.on_parameters import Borrowed
    from pyenc.integrations.borrowed.refusals import Refused

    model = Remote(Settings(**CONFIG)).eval()
    encoder = Borrowed(model).encoder
    up = model.get_parameter("encoder.layers.1.mlp.experts.mlp.w1")
    assert encoder.get_parameter("layers.1.feed_forward.up") is up
    ids = torch.randint(4, 150, (2, 12))
    with torch.no_grad():
        assert (encoder(ids) - model(ids).last_hidden_state).abs().max() <= 1e-5
        up.mul_(1.1)
        assert (encoder(ids) - model(ids).last_hidden_state).abs().max() <= 1e-5
    settings = Settings(**(CONFIG | {"num_shared_experts": 1}))
    with pytest.raises(Refused, match="num_shared_experts is 1"):
        Borrowed(Remote(settings).eval())
    # What the config says and the model does not do.
    one = Remote(Settings(**(CONFIG | {"moe_top_k": 1}))).eval()
    with pytest.raises(Refused, match="computes another function"):
        Borrowed(one)
