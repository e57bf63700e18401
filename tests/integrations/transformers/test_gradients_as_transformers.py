"""The gradients of an encoder are those that transformers' own class has in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

# By a module of it: a folder of tests has its name.
pytest.importorskip("transformers.modeling_utils")

from transformers import AutoModel, T5EncoderModel
from transformers.utils import logging

from pyenc.ops import extension
from tests.conftest import GOLDEN
from tests.models.family_losses import case_of, padded
from tests.oracle import assert_right

BACKENDS = ("torch", "cpu") if extension.load() is not None else ("torch",)

NAMES = (
    "bert_mean_h4", "distilbert_h4", "modernbert_gte_like_h4", "modernbert_mmbert_like_h3",
    "mpnet_base_v2_like_h4", "roberta_distil_like_h4", "t5_instructor_gated_h6",
    "t5_mean_relu_h4", "xlmr_bge_m3_like_h4",
)  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_as_of_its_own_class(name: str) -> None:
    """Of a random share of all states: padded there, packed here."""
    logging.set_verbosity_error()
    checkpoint = case_of(name).checkpoint
    encoder = checkpoint.encoder
    ids, mask, _ = padded(encoder.config)
    kind = T5EncoderModel if name.startswith("t5") else AutoModel
    model = kind.from_pretrained(GOLDEN / name, dtype=torch.float32).eval()
    share = torch.randn(*ids.shape, encoder.config.hidden_size, dtype=torch.float64)
    share *= mask[:, :, None]

    def gradients(module: torch.nn.Module, states: Tensor) -> dict[str, Tensor]:
        (states * share.to(states.dtype)).sum().backward()
        found = {n: p.grad for n, p in module.named_parameters() if p.grad is not None}
        module.zero_grad(set_to_none=True)
        return found

    def theirs() -> dict[str, Tensor]:
        return gradients(model, model(input_ids=ids, attention_mask=mask).last_hidden_state)

    rough, exact = theirs(), (model.double(), theirs())[1]
    ours = {}
    for backend in BACKENDS:
        encoder.backend = backend
        ours[backend] = gradients(encoder, encoder(ids, mask))
    compared = set()
    for parameter, names in checkpoint.sources.items():
        if parameter.startswith(("pooler.", "lm_head.")):
            continue
        # A masked-LM checkpoint has the encoder below a prefix.
        bare = [n if n in exact else n.removeprefix("model.") for n in names]
        compared.update(bare)
        naive, oracle = (torch.cat([found[n] for n in bare]) for found in (rough, exact))
        for backend in BACKENDS:
            what = f"{backend}: {parameter}"
            assert_right(ours[backend][parameter], naive, oracle, gradient=True, what=what)
    assert compared == exact.keys()
