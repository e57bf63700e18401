"""What an accelerated model's config comes to say is seen at the next call."""

from __future__ import annotations

import warnings

import pytest

pytest.importorskip("sentence_transformers")

from pyenc.integrations.sentence_transformers import AccelerationWarning, accelerate
from tests.integrations.sentence_transformers.models import TEXTS, loaded
from tests.integrations.sentence_transformers.test_answers import NEAR, off
from tests.integrations.sentence_transformers.test_changed import own_answer, served


@pytest.mark.parametrize(
    "name", ["llama_encoder_like_h6", "qwen2_code_like_h6", "qwen3_embed_like_h4"]
)
def test_a_setting_that_the_config_did_not_have(name: str) -> None:
    """Read anew whenever the model is called, and taken away again."""
    model = accelerate(loaded(name))
    before = model.encode(TEXTS)
    config = model[0].model.config
    assert "is_causal" not in vars(config)
    config.is_causal = False
    found = model.encode(TEXTS)
    assert off(found, own_answer(model)) <= NEAR
    assert off(found, before) > 1e-2
    assert served(model)
    del config.is_causal
    assert off(model.encode(TEXTS), before) <= NEAR
    assert served(model)


def test_another_window() -> None:
    """Of every layer; one on both sides is transformers' own."""
    model = accelerate(loaded("mistral_e5_like_h4"))
    before = model.encode(TEXTS)
    config = model[0].model.config
    for window in (3, None):
        config.sliding_window = window
        found = model.encode(TEXTS)
        assert off(found, own_answer(model)) <= NEAR
        assert off(found, before) > 1e-2
        assert served(model)
    config.sliding_window, config.is_causal = 12, False
    with pytest.warns(AccelerationWarning, match="is_causal false with windows"):
        found = model.encode(TEXTS)
    assert off(found, own_answer(model)) <= NEAR


def test_another_list_of_layers() -> None:
    """Of which transformers asks the config whenever a layer is called."""
    model = loaded("gemma_embed_like_h3")
    config = model[0].model.config
    assert {"full_attention", "sliding_attention"} == set(config.layer_types)
    before = accelerate(model).encode(TEXTS)
    config.layer_types = config.layer_types[::-1]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", AccelerationWarning)
        found = model.encode(TEXTS)
    assert off(found, own_answer(model)) <= NEAR
    assert off(found, before) > 1e-2
