"""In training an encoder drops where transformers' own class drops, and as much."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("sentence_transformers")

from pyenc.integrations.borrowed.on_parameters import encoder_on
from tests.conftest import GOLDEN
from tests.integrations.sentence_transformers.models import CLASSES, of_class
from tests.models.family_losses import padded

BERTS = {"hidden_dropout_prob": 0.2, "attention_probs_dropout_prob": 0.3}
SETTINGS: dict[str, dict[str, float]] = {
    "bert_mean_h4": BERTS,
    "roberta_distil_like_h4": BERTS,
    "mpnet_base_v2_like_h4": BERTS,
    "deberta_own_mlm_h4": BERTS,
    "deberta_v2_conv_like_h4": BERTS,
    "deberta_v3_like_h4": BERTS,
    "electra_small_like_h4": BERTS,
    "distilbert_h4": {"dropout": 0.2, "attention_dropout": 0.3},
    "modernbert_mmbert_like_h3": {
        "mlp_dropout": 0.2, "attention_dropout": 0.3, "embedding_dropout": 0.1,
    },
    "t5_instructor_gated_h6": {"dropout_rate": 0.2},
    "t5_mean_relu_h4": {"dropout_rate": 0.2},
    **dict.fromkeys(CLASSES, BERTS),
}  # fmt: skip


def model_of(name: str, settings: dict[str, float]) -> Any:
    import transformers

    if name in CLASSES:
        return of_class(name, **settings)[0].model.double()
    kind = transformers.T5EncoderModel if name.startswith("t5") else transformers.AutoModel
    return kind.from_pretrained(GOLDEN / name, dtype=torch.float64, **settings)


@pytest.mark.parametrize("name", SETTINGS)
def test_places(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With dropout made a function of the number alone the answers in training are equal."""
    model = model_of(name, SETTINGS[name]).train()
    encoder = encoder_on(model).train()
    weights, seen = set(), []

    def dropout(x: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
        if not training or p == 0:
            return x
        if x.ndim == 4:  # attention's weights
            weights.add(p)
            return x
        seen.append(p)
        return x * (1 + p * torch.sin(3 * x))

    sdpa = torch.nn.functional.scaled_dot_product_attention

    def attention(*args: Any, dropout_p: float = 0.0, **named: Any) -> Tensor:
        weights.add(dropout_p)
        return sdpa(*args, **named)

    monkeypatch.setattr(torch.nn.functional, "dropout", dropout)
    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", attention)
    ids, mask, _ = padded(encoder.config)
    with torch.no_grad():
        theirs = model(input_ids=ids, attention_mask=mask).last_hidden_state[mask == 1]
        places, seen[:] = list(seen), []
        assert weights == {layer.attention.dropout for layer in encoder.layers}
        for layer in encoder.layers:
            layer.attention.dropout = 0.0
        ours = encoder(ids, mask)[mask == 1]
        assert seen == places
        plain = encoder.eval()(ids, mask)[mask == 1]
    # transformers' T5 takes a variance in float32.
    assert (ours - theirs).abs().max() <= 1e-5
    assert (ours - plain).abs().max() > 1e-2
