"""`token_logits` and `logits`: the head's formula on the original code's hidden states, every
layout, gradients into tied and untied decoders, and what is said where there is no head."""

from __future__ import annotations

import copy
import dataclasses
import pickle
from pathlib import Path

import pytest
import torch
from torch import Tensor

from pyenc.errors import InputError
from pyenc.loading import load_checkpoint, save_checkpoint
from pyenc.models import Encoder, EncoderConfig, HeadConfig
from tests.conftest import GOLDEN, read_golden
from tests.masked_lm import ADDED, STORED, Naming, logits, stored, written

HEADS = STORED | ADDED


@pytest.fixture(params=HEADS)
def case(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, Naming, Path]:
    name = request.param
    return name, HEADS[name], written(tmp_path / name, name)


@torch.no_grad()
@pytest.mark.parametrize(
    ("dtype", "backend"),
    [("float32", None), ("float64", None), ("float64", "torch"), ("float64", "reference")],
)
def test_formula(case: tuple[str, Naming, Path], dtype: str, backend: str | None) -> None:
    name, naming, folder = case
    golden, tensors = read_golden(name), stored(folder)
    encoder = load_checkpoint(folder, dtype=dtype, backend=backend, skip_eps=0).encoder
    for batch in ("ragged", "single", "leftpad", "holes"):
        ids, mask, types = golden.inputs(batch)
        hidden = golden.expected(batch, "last_hidden_state")
        assert hidden is not None
        expected = logits(naming, tensors, hidden)
        got = encoder.token_logits(ids, mask, types)
        assert got.dtype == getattr(torch, dtype)
        assert got.shape == (*ids.shape, encoder.config.vocab_size)
        assert not got[mask == 0].any()
        # The hidden states' tolerance, and the product over them.
        off, scale = (got.double() - expected)[mask == 1].abs().max(), expected.abs().max()
        assert off <= 1e-5 * max(1, scale), f"{batch}: off by {off:.2g} of {scale:.2g}"


@pytest.mark.parametrize(
    "change",
    [{"activation": "gelu_tanh"}, {"activation": "relu"}, {"norm_eps": 1e-3}],
    ids=str,
)
@torch.no_grad()
def test_a_mutation_is_seen(change: dict[str, object]) -> None:
    """The tolerance of `test_formula` is no formality."""
    golden, tensors = read_golden("mosaic_mlm_h4"), stored(GOLDEN / "mosaic_mlm_h4")
    plain = load_checkpoint(golden.folder, dtype="float64").encoder
    assert plain.config.lm_head is not None
    head = dataclasses.replace(plain.config.lm_head, **change)  # type: ignore[arg-type]
    mutant = Encoder(dataclasses.replace(plain.config, lm_head=head)).double().eval()
    mutant.load_state_dict(plain.state_dict())
    ids, mask, types = golden.inputs("ragged")
    hidden = golden.expected("ragged", "last_hidden_state")
    assert hidden is not None
    expected = logits(STORED["mosaic_mlm_h4"], tensors, hidden)
    off = (mutant.token_logits(ids, mask, types) - expected)[mask == 1].abs().max()
    assert off > 1e-4 * expected.abs().max()


CONFIG = EncoderConfig(
    vocab_size=50, hidden_size=24, num_layers=2, num_heads=3, intermediate_size=20,
    position="alibi", max_length=64, gated=True, up_bias=False, lm_head=HeadConfig(),
)  # fmt: skip


def made(head: HeadConfig | None) -> Encoder:
    encoder = Encoder(dataclasses.replace(CONFIG, lm_head=head)).eval()
    for parameter in encoder.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return encoder


NO_BIASES = HeadConfig(dense_bias=False, norm_bias=False, bias=False)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("head", [HeadConfig(), NO_BIASES], ids=["biased", "bare"])
def test_parameters(head: HeadConfig, tied: bool) -> None:
    """Those of the head are there once, under names of their own, and no others."""
    encoder = made(dataclasses.replace(head, tied=tied))
    plain = made(None)
    names = {name for name, _ in encoder.named_parameters()}
    expected = {"lm_head.dense.weight", "lm_head.norm.weight"}
    if head.bias:
        expected |= {"lm_head.dense.bias", "lm_head.norm.bias", "lm_head.bias"}
    if not tied:
        expected |= {"lm_head.decoder.weight"}
    assert names - {name for name, _ in plain.named_parameters()} == expected
    assert encoder.state_dict().keys() == names
    assert not list(encoder.buffers())


@torch.no_grad()
@pytest.mark.parametrize("tied", [True, False])
def test_layouts_agree(tied: bool) -> None:
    encoder = made(HeadConfig(tied=tied))
    texts = [torch.randint(0, 50, (n,)) for n in (7, 1, 20, 13)]
    alone = [encoder.token_logits(text[None])[0] for text in texts]
    ids, bounds = torch.cat(texts), torch.tensor([0, 7, 8, 28, 41])
    packed = encoder.logits(encoder.forward_packed(ids, bounds))
    torch.testing.assert_close(packed, torch.cat(alone), rtol=0, atol=1e-5)
    for left in (False, True):
        rows, mask = torch.randint(0, 50, (4, 23)), torch.zeros(4, 23, dtype=torch.long)
        for i, text in enumerate(texts):
            place = slice(23 - len(text), 23) if left else slice(0, len(text))
            rows[i, place], mask[i, place] = text, 1
        got = encoder.token_logits(rows, mask)
        assert not got[mask == 0].any()
        torch.testing.assert_close(got[mask == 1], packed, rtol=0, atol=1e-5)
    mask = torch.tensor([[1, 1, 0, 1]])
    rows = texts[0][None, :4]
    some = encoder(rows, mask)
    torch.testing.assert_close(
        encoder.token_logits(rows, mask)[mask == 1], encoder.logits(some[mask == 1])
    )


@torch.no_grad()
def test_of_some_tokens_alone() -> None:
    """Pretraining asks for the masked tokens, one or none among them."""
    encoder, ids = made(HeadConfig()), torch.randint(0, 50, (3, 9))
    whole, hidden = encoder.token_logits(ids), encoder(ids)
    chosen = torch.rand(3, 9) < 0.3
    torch.testing.assert_close(encoder.logits(hidden[chosen]), whole[chosen])
    torch.testing.assert_close(encoder.logits(hidden), whole)
    assert encoder.logits(hidden[:0, 0]).shape == (0, 50)
    torch.testing.assert_close(encoder.logits(hidden[0, 0]), whole[0, 0])


@torch.no_grad()
@pytest.mark.parametrize("shape", [(0, 5), (2, 0)])
def test_no_tokens(shape: tuple[int, int]) -> None:
    ids = torch.zeros(shape, dtype=torch.long)
    assert made(HeadConfig()).token_logits(ids).shape == (*shape, 50)
    encoder = made(HeadConfig())
    assert not encoder.token_logits(torch.ones(2, 5).long(), torch.zeros(2, 5).long()).any()


@pytest.mark.parametrize("tied", [True, False])
def test_gradients(tied: bool) -> None:
    """Into every parameter those of the dense oracle; into the words through both of their uses,
    or through one."""
    encoder = made(HeadConfig(tied=tied)).double()
    ids = torch.randint(0, 50, (2, 11))
    mask = torch.ones_like(ids)
    mask[1, 4:] = 0
    weight = torch.randn(2, 11, 50, dtype=torch.float64) * mask[..., None]
    names, parameters = zip(*encoder.named_parameters(), strict=True)
    got = torch.autograd.grad((encoder.token_logits(ids, mask) * weight).sum(), parameters)

    oracle = copy.deepcopy(encoder)
    oracle.backend = "reference"
    head = dict(oracle.lm_head.named_parameters()) if oracle.lm_head else {}
    words = oracle.embeddings.word.weight
    naming = Naming("dense", "norm", "bias", "decoder.weight", "words", 1e-12)
    tensors = head | {"words": words}
    loss = (logits(naming, tensors, oracle(ids, mask)) * weight).sum()
    expected = torch.autograd.grad(loss, tuple(oracle.parameters()), retain_graph=True)
    for name, a, b in zip(names, got, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-9, msg=name)
    unused = {i for i in range(50) if not (ids[mask == 1] == i).any()}
    rows = got[names.index("embeddings.word.weight")][sorted(unused)]
    # A word that no text has is moved by its place among the logits alone.
    assert bool(rows.any()) == tied


def test_encoding_computes_no_head() -> None:
    encoder = made(HeadConfig())
    assert encoder.lm_head is not None
    encoder.lm_head.register_forward_hook(lambda *_: pytest.fail("the head was run"))
    ids = torch.randint(0, 50, (2, 7))
    encoder(ids).sum().backward()
    encoder.forward_packed(ids[0], torch.tensor([0, 7]))
    for name, parameter in encoder.named_parameters():
        assert (parameter.grad is None) == name.startswith("lm_head"), name


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype: torch.dtype) -> None:
    encoder = made(HeadConfig(tied=False))
    exact = copy.deepcopy(encoder).double()
    ids = torch.randint(0, 50, (2, 9))
    half = copy.deepcopy(encoder).to(dtype)
    got, expected = half.token_logits(ids), exact.token_logits(ids)
    assert got.dtype == dtype
    assert (got.double() - expected).abs().max() <= 0.05 * expected.abs().max()
    with torch.autocast("cpu", torch.bfloat16):
        got = encoder.token_logits(ids)
    assert (got.double() - expected).abs().max() <= 0.05 * expected.abs().max()


@pytest.mark.parametrize("tied", [True, False])
def test_a_tie_outlives_what_torch_does(tied: bool) -> None:
    """Cast, copied, pickled, saved as a state: the decoder is still the words, or still is not."""
    encoder = made(HeadConfig(tied=tied))
    ids = torch.randint(0, 50, (1, 5))
    again = Encoder(encoder.config).eval()
    again.load_state_dict(encoder.state_dict())
    assigned = Encoder(encoder.config).eval()
    assigned.load_state_dict(copy.deepcopy(encoder.state_dict()), assign=True)
    for twin in (
        copy.deepcopy(encoder), pickle.loads(pickle.dumps(encoder)), again, assigned,
        copy.deepcopy(encoder).double().float().to("cpu"),
    ):  # fmt: skip
        with torch.no_grad():
            assert torch.equal(twin.token_logits(ids), encoder.token_logits(ids))
        twin.token_logits(ids).sum().backward()
        rows = twin.embeddings.word.weight.grad
        assert rows is not None
        assert bool(rows[[i for i in range(50) if i not in ids]].any()) == tied


def test_pretraining_goes_on(tmp_path: Path) -> None:
    """Loaded, trained on masked tokens, saved, loaded: the loss falls and is still there."""
    checkpoint = load_checkpoint(GOLDEN / "mosaic_mlm_h4")
    encoder = checkpoint.encoder
    ids = torch.randint(5, 128, (4, 16))
    masked = torch.zeros_like(ids, dtype=torch.bool)
    masked[:, ::5] = True

    def loss() -> Tensor:
        hidden = encoder(ids.masked_fill(masked, 4))
        return torch.nn.functional.cross_entropy(encoder.logits(hidden[masked]), ids[masked])

    first = loss().item()
    optimizer = torch.optim.Adam(encoder.parameters(), lr=1e-2)
    for _ in range(10):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
    with torch.no_grad():
        last = loss().item()
        assert last < first / 2
        save_checkpoint(checkpoint, tmp_path)
        encoder = load_checkpoint(tmp_path).encoder
        assert loss().item() == last
    before, after = stored(GOLDEN / "mosaic_mlm_h4"), stored(tmp_path)
    words = after["bert.embeddings.word_embeddings.weight"]
    assert torch.equal(after["cls.predictions.decoder.weight"], words)
    for name in before:
        if name.startswith("cls."):
            assert not torch.equal(before[name], after[name]), name


def test_without_a_head() -> None:
    encoder = load_checkpoint(GOLDEN / "bert_mean_h4").encoder
    message = r"no masked-LM head: the weights lack cls\.predictions\.transform\.dense\.weight, "
    with pytest.raises(InputError, match=message):
        encoder.token_logits(torch.ones(1, 3).long())
    with pytest.raises(InputError, match=message):
        encoder.logits(torch.ones(3, 64))
    with pytest.raises(InputError, match="no such head of T5"):
        load_checkpoint(GOLDEN / "t5_mean_relu_h4").encoder.check_head()
    with pytest.raises(InputError, match="its EncoderConfig has no lm_head"):
        made(None).check_head()


def test_bad_input() -> None:
    encoder = made(HeadConfig())
    with pytest.raises(InputError, match=r"linear: weight must be .*\(24, 24\) and \(3, 25\)"):
        encoder.logits(torch.ones(3, 25))
    with pytest.raises(InputError, match="token id 50 at packed token 1"):
        encoder.token_logits(torch.tensor([[3, 50]]))
    with pytest.raises(InputError, match="HeadConfig: unknown activation 'elu'"):
        HeadConfig(activation="elu")
