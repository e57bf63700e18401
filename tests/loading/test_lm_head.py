"""A masked-LM head is loaded where it is whole, tied as its file has it, and written as it came."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from pyenc.errors import CheckpointError, InputError
from pyenc.loading import load_checkpoint, save_checkpoint
from pyenc.models import Encoder, HeadConfig
from pyenc.models.head import MaskedLMHead
from tests.conftest import GOLDEN
from tests.masked_lm import NAME, written


def edit_config(folder: Path, **changes: object) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))


def untied(tensors: dict[str, Tensor]) -> None:
    tensors["cls.predictions.decoder.weight"] = torch.randn(128, 64)


def test_an_untied_decoder_is_held_apart(tmp_path: Path) -> None:
    """Each is trained, and written, for itself."""
    folder = written(tmp_path / "a", "jina_mlm_prefix_h4", untied)
    checkpoint = load_checkpoint(folder)
    encoder = checkpoint.encoder
    assert encoder.config.lm_head is not None
    assert not encoder.config.lm_head.tied
    ids = torch.randint(0, 128, (2, 9))
    loss = encoder.token_logits(ids).square().mean()
    loss.backward()
    torch.optim.SGD(encoder.parameters(), lr=0.1).step()
    save_checkpoint(checkpoint, tmp_path / "b")
    before, after = load_file(folder / NAME), load_file(tmp_path / "b" / NAME)
    assert before.keys() == after.keys()
    a, b = "bert.embeddings.word_embeddings.weight", "cls.predictions.decoder.weight"
    assert not torch.equal(before[a], after[a])
    assert not torch.equal(before[b], after[b])
    assert not torch.equal(after[a] - before[a], after[b] - before[b])
    again = load_checkpoint(tmp_path / "b").encoder
    with torch.no_grad():
        assert torch.equal(again.token_logits(ids), encoder.token_logits(ids))


def equal_decoder(tensors: dict[str, Tensor]) -> None:
    words = tensors["bert.embeddings.word_embeddings.weight"]
    tensors["cls.predictions.decoder.weight"] = words


@pytest.mark.parametrize("said", [None, True, False])
@pytest.mark.parametrize("change", [equal_decoder, untied, lambda t: None])
def test_what_the_config_says_of_the_tie(
    tmp_path: Path, change: Callable[[dict[str, Tensor]], None], said: bool | None
) -> None:
    """An equal decoder is one with the words unless the file forbids it; one that differs never;
    without one there is no head where it forbids it."""
    folder = written(tmp_path / "a", "jina_mlm_prefix_h4", change)
    if said is not None:
        edit_config(folder, tie_word_embeddings=said)
    checkpoint = load_checkpoint(folder)
    config = checkpoint.encoder.config
    if said is False and change not in (equal_decoder, untied):
        assert config.lm_head is None
        assert config.no_lm_head == "the weights lack cls.predictions.decoder.weight"
        assert "cls.predictions.bias" in checkpoint.set_aside
    else:
        assert config.lm_head is not None
        assert config.lm_head.tied == (change is not untied and said is not False)
    save_checkpoint(checkpoint, tmp_path / "b")
    before, after = load_file(folder / NAME), load_file(tmp_path / "b" / NAME)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


BIAS, OTHER = "cls.predictions.bias", "cls.predictions.decoder.bias"


@pytest.mark.parametrize("golden", ["jina_mlm_prefix_h4", "bert_mean_h4", "jina_qk_h6"])
def test_a_bias_of_two_names(tmp_path: Path, golden: str) -> None:
    """Old code stored it twice: one parameter, written under both."""
    folder = written(tmp_path / "a", golden, lambda t: t.update({OTHER: t[BIAS]}))
    checkpoint = load_checkpoint(folder)
    assert checkpoint.tied == {OTHER: "lm_head.bias"}
    with torch.no_grad():
        checkpoint.encoder.state_dict()["lm_head.bias"] += 1
    save_checkpoint(checkpoint, tmp_path / "b")
    before, after = load_file(folder / NAME), load_file(tmp_path / "b" / NAME)
    assert torch.equal(after[BIAS], before[BIAS].float() + 1)
    assert torch.equal(after[OTHER], after[BIAS])


@pytest.mark.parametrize("only", [BIAS, OTHER])
def test_a_bias_of_either_name(tmp_path: Path, only: str) -> None:
    folder = written(tmp_path / "a", "bert_mean_h4", lambda t: t.update({only: t.pop(BIAS)}))
    checkpoint = load_checkpoint(folder)
    assert checkpoint.sources["lm_head.bias"] == (only,)


def test_the_norm_of_mosaic_has_its_own_epsilon(tmp_path: Path) -> None:
    """Its code has a number there; the other families take that of config.json."""
    for golden, eps in (("mosaic_mlm_h4", 1e-12), ("jina_mlm_prefix_h4", 1e-3)):
        folder = written(tmp_path / golden, golden)
        edit_config(folder, layer_norm_eps=1e-3)
        encoder = load_checkpoint(folder).encoder
        assert encoder.config.lm_head is not None
        assert encoder.config.norm_eps == 1e-3
        assert encoder.config.lm_head.norm_eps == eps


def float8(tensors: dict[str, Tensor], name: str) -> None:
    tensors[name] = tensors[name].to(torch.float8_e4m3fn)


FAULTS: dict[str, tuple[Callable[[dict[str, Tensor]], object], str]] = {
    "no dense layer": (
        lambda t: t.pop("cls.predictions.transform.dense.weight"),
        "the weights lack cls.predictions.transform.dense.weight",
    ),
    "no biases": (
        lambda t: (t.pop(BIAS), t.pop("cls.predictions.transform.dense.bias")),
        f"the weights lack cls.predictions.transform.dense.bias, {BIAS}",
    ),
    "a bias alone": (
        lambda t: [t.pop(name) for name in list(t) if "transform" in name],
        "the weights lack cls.predictions.transform.dense.weight, cls.predictions.transform.dense"
        ".bias, cls.predictions.transform.LayerNorm.weight, cls.predictions.transform.LayerNorm",
    ),
    "two biases": (
        lambda t: t.update({OTHER: t[BIAS] + 1}),
        f"'{BIAS}' and '{OTHER}' are one bias, and differ in ",
    ),
    "fewer words": (
        lambda t: t.update({BIAS: t[BIAS][:100].clone()}),
        "has shape (100,), but config.json asks for (128,)",
    ),
    "another decoder": (
        lambda t: t.update({"cls.predictions.decoder.weight": torch.zeros(100, 64)}),
        "has shape (100, 64), but config.json asks for (128, 64)",
    ),
    "quantised": (
        lambda t: float8(t, "cls.predictions.transform.dense.weight"),
        "is torch.float8_e4m3fn, which is not served: quantised weights",
    ),
    "quantised biases": (
        lambda t: (t.update({OTHER: t[BIAS].clone()}), float8(t, BIAS), float8(t, OTHER)),
        "are one bias, and differ in ",
    ),
    "twice": (
        lambda t: t.update({f"bert.{BIAS}": t[BIAS].clone()}),
        f"are both its {BIAS}",
    ),
}


@pytest.mark.parametrize("what", FAULTS)
def test_a_head_that_is_not_whole(tmp_path: Path, what: str) -> None:
    """It stays aside as it is, the encoder serves, and `token_logits` says what is wrong."""
    change, message = FAULTS[what]
    folder = written(tmp_path / "a", "jina_mlm_prefix_h4", change)
    checkpoint = load_checkpoint(folder)
    encoder = checkpoint.encoder
    assert not any(name.startswith("lm_head") for name in encoder.state_dict())
    ids = torch.randint(0, 128, (1, 5))
    with torch.no_grad():
        plain = load_checkpoint(GOLDEN / "jina_mlm_prefix_h4").encoder
        assert torch.equal(encoder(ids), plain(ids))
    with pytest.raises(InputError) as caught:
        encoder.token_logits(ids)
    assert "this encoder has no masked-LM head" in str(caught.value)
    assert message in str(caught.value)
    save_checkpoint(checkpoint, tmp_path / "b")
    before, after = load_file(folder / NAME), load_file(tmp_path / "b" / NAME)
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        assert after[name].dtype == tensor.dtype
        assert torch.equal(after[name].double(), tensor.double()), name


@pytest.mark.parametrize(
    ("golden", "config", "message"),
    [
        ("jina_mlm_prefix_h4", {"hidden_act": "quick_gelu"}, "hidden_act 'quick_gelu' is unknown"),
        ("jina_mlm_prefix_h4", {"tie_word_embeddings": "yes"}, "must be true or false"),
        ("modernbert_mmbert_like_h3", {"classifier_activation": "tanh"}, "'tanh' is unknown"),
        ("modernbert_mmbert_like_h3", {"decoder_bias": False}, "one without decoder.bias, "),
        (
            "modernbert_mmbert_like_h3",
            {"classifier_bias": True},
            "the weights lack head.dense.bias",
        ),
    ],
)
def test_a_head_that_the_config_does_not_describe(
    tmp_path: Path, golden: str, config: dict[str, object], message: str
) -> None:
    folder = written(tmp_path / "a", golden)
    edit_config(folder, **config)
    checkpoint = load_checkpoint(folder)
    with pytest.raises(InputError) as caught:
        checkpoint.encoder.check_head()
    assert message in str(caught.value)
    save_checkpoint(checkpoint, tmp_path / "b")
    assert load_file(folder / NAME).keys() == load_file(tmp_path / "b" / NAME).keys()


def test_in_the_dtype_of_the_model(tmp_path: Path) -> None:
    folder = written(tmp_path / "a", "jina_mlm_prefix_h4", untied)
    encoder = load_checkpoint(folder, dtype="bfloat16").encoder
    assert {p.dtype for p in encoder.parameters()} == {torch.bfloat16}
    assert {p.dtype for p in encoder.double().parameters()} == {torch.float64}
    with torch.no_grad():
        assert encoder.token_logits(torch.ones(1, 2).long()).dtype == torch.float64


HEAD_CHANGES: dict[str, tuple[Callable[[Encoder], object], str]] = {
    "another activation": (
        lambda e: setattr(e.lm_head, "activation", "silu"),
        "lm_head.activation is 'silu', but by config.json it is 'gelu'",
    ),
    "no head": (lambda e: setattr(e, "lm_head", None), "lm_head (MaskedLMHead) is missing"),
    "a decoder of its own": (
        lambda e: setattr(e.lm_head, "decoder", nn.Linear(64, 128)),
        "lm_head.decoder (Linear) is no part",
    ),
    "fewer words": (
        lambda e: setattr(e.lm_head, "bias", nn.Parameter(torch.zeros(100))),
        "lm_head.bias has shape (100,), but config.json asks for (128,)",
    ),
}


@pytest.mark.parametrize("what", HEAD_CHANGES)
def test_a_head_that_a_checkpoint_cannot_hold(tmp_path: Path, what: str) -> None:
    change, message = HEAD_CHANGES[what]
    checkpoint = load_checkpoint(GOLDEN / "jina_mlm_prefix_h4")
    change(checkpoint.encoder)
    with pytest.raises(CheckpointError) as caught:
        save_checkpoint(checkpoint, tmp_path / "saved")
    assert message in str(caught.value)
    assert not (tmp_path / "saved").exists()


def test_a_head_where_the_checkpoint_has_none(tmp_path: Path) -> None:
    checkpoint = load_checkpoint(GOLDEN / "bert_mean_h4")
    encoder = checkpoint.encoder
    encoder.lm_head = MaskedLMHead(encoder.config, HeadConfig())
    with pytest.raises(CheckpointError, match=r"lm_head \(MaskedLMHead\) is no part"):
        save_checkpoint(checkpoint, tmp_path / "saved")
